"""Processes of tests. None is forked from the process of pytest: that one has threads, and a fork would inherit the locks that they hold at that moment and
could wait for them for ever. They come from a server process, which has imported what they need and has no other thread; what is passed to them is pickled."""
import multiprocessing as mp

LIMIT = 240                # seconds that a process may take


def server(*modules):
    "The context whose processes find these modules imported (the first caller of all decides; others only take longer)."
    ctx = mp.get_context('forkserver')
    ctx.set_forkserver_preload(['torch', *modules])
    return ctx


def ended(process, limit=LIMIT):
    "Exit code of a process that was started; one that does not end is killed and is an error."
    process.join(limit)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise AssertionError(f'{process.name} still ran after {limit} s')
    return process.exitcode


def run(ctx, target, *args, limit=LIMIT):
    "Exit code of a process that calls this."
    p = ctx.Process(target=target, args=args)
    p.start()
    return ended(p, limit)


def _tell(end, target, args): end.send(target(*args))

def ask(ctx, target, *args, limit=LIMIT):
    "What a function says in a process of its own."
    ours, theirs = ctx.Pipe(duplex=False)
    p = ctx.Process(target=_tell, args=(theirs, target, args))
    p.start()
    theirs.close()
    said = ours.recv() if ours.poll(limit) else None
    assert ended(p, limit) == 0
    return said
