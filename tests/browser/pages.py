"Pages served from a folder and opened in chromium, without any other network."
import threading
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from test_explorer import CHROMIUM


CAMERA = '--use-fake-device-for-media-stream', '--use-fake-ui-for-media-stream'     # chromium draws a picture that moves


class Quiet(SimpleHTTPRequestHandler):
    extensions_map = {**SimpleHTTPRequestHandler.extensions_map, '.mjs': 'text/javascript', '.js': 'text/javascript', '.wasm': 'application/wasm'}
    def log_message(self, *args): pass


@contextmanager
def served(folder):
    "The address of a folder."
    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}/'
    server.shutdown()


@contextmanager
def opened(address, path='', size=(1280, 800), flags=()):
    "A tab at `address`; `tab.errors` and `tab.foreign` list what went wrong and what was asked of other places."
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox', '--disable-dev-shm-usage', *flags])
        tab = browser.new_page(viewport=dict(width=size[0], height=size[1]))
        tab.set_default_timeout(120_000)
        tab.errors, tab.foreign = [], []
        tab.on('pageerror', lambda e: tab.errors.append(str(e)))
        def local(route):
            if route.request.url.startswith((address, 'data:', 'blob:')): return route.continue_()
            tab.foreign.append(route.request.url)
            route.abort()
        tab.route('**/*', local)
        tab.goto(address + path)
        yield tab
        browser.close()
