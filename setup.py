"Packaging: every fact comes from settings.ini."
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

root = Path(__file__).parent
parser = ConfigParser(delimiters=['='], interpolation=None)
parser.read(root/'settings.ini', encoding='utf-8')
cfg = parser['DEFAULT']
suffix = '_requirements'
extras = {k[:-len(suffix)]: v.split() for k, v in cfg.items() if k.endswith(suffix)}
extras['all'] = sorted({r for name, reqs in extras.items() if name != 'dev' for r in reqs})

# The published YAMLs and the web page live at the top level; in a wheel they travel inside the package (see
# `config_file` and `web_file`).
packages = find_packages(include=['xmodaler_nb', 'xmodaler_nb.*'])
top_level = {f'xmodaler_nb.{name}': name for name in ('configs', 'web') if (root/name).is_dir()}

setup(
    name=cfg['lib_name'],
    version=cfg['version'],
    description=cfg['description'],
    long_description=(root/'README.md').read_text(encoding='utf-8') if (root/'README.md').exists() else '',
    long_description_content_type='text/markdown',
    author=cfg['author'],
    keywords=cfg['keywords'],
    url=cfg['git_url'],
    project_urls={'Source': cfg['git_url']},
    classifiers=['Programming Language :: Python :: 3', 'Topic :: Scientific/Engineering :: Artificial Intelligence'],
    license='Apache-2.0',
    python_requires=f">={cfg['min_python']}",
    packages=packages + list(top_level),
    package_dir=top_level,
    package_data={'xmodaler_nb.configs': ['**/*.yaml', '*.yaml', 'asl/signers/*', 'models/*/*'],
                  'xmodaler_nb.web': ['*.html', '*.css', '*.js']},
    include_package_data=False,
    install_requires=cfg['requirements'].split(),
    extras_require=extras,
    entry_points={'console_scripts': [s.strip() for s in cfg['console_scripts'].split('\n') if s.strip()],
                  'nbdev': [f"{cfg['lib_path']}={cfg['lib_path']}._modidx:d"]},
    zip_safe=False,
)
