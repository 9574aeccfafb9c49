"The package and README.md are what the notebooks say."
import filecmp, os, re, shutil, subprocess, sys
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parents[2]


def files(*args) -> list:
    "Files git knows or would add, of the working tree."
    out = subprocess.run(['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard', *args], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return sorted({f for f in out.split('\0') if f and (ROOT/f).is_file()})


@pytest.fixture(scope='module')
def copy(tmp_path_factory):
    "A copy of the working tree in which the package was exported anew."
    if not (ROOT/'.git').exists(): pytest.skip('not a git checkout')
    to = tmp_path_factory.mktemp('copy')
    for f in files():
        (to/f).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT/f, to/f)
    env = {**os.environ, 'PYTHONPATH': str(to)}
    done = subprocess.run([sys.executable, '-c', 'import nbdev; nbdev.nbdev_export()'], cwd=to, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return to


def test_export_changes_nothing(copy):
    new = {str(p.relative_to(copy)) for p in (copy/'xmodaler_nb').rglob('*.py')}
    old = set(files('xmodaler_nb/**/*.py', 'xmodaler_nb/*.py'))
    assert new == old, f'modules appear or vanish on export: {sorted(new ^ old)}'
    changed = [f for f in sorted(new) if not filecmp.cmp(copy/f, ROOT/f, shallow=False)]
    assert not changed, f'edit the notebooks, then run nbdev_export; out of step: {changed}'


def test_every_module_has_its_notebook():
    "A module whose notebook was renamed or removed would stay behind for ever."
    orphans = []
    for f in files('xmodaler_nb/**/*.py', 'xmodaler_nb/*.py'):
        made_from = re.search(r'File to edit: (\S+?)\.?$', (ROOT/f).read_text(), re.M)
        if made_from and not ((ROOT/f).parent/made_from[1]).resolve().is_file(): orphans.append((f, made_from[1]))
    assert not orphans


def test_readme_is_the_index_notebook():
    index = ROOT/'nbs'/'index.ipynb'
    if not index.exists(): pytest.skip('nbs/index.ipynb is not there')
    from xmodaler_nb.utils.docs import render_readme
    assert (ROOT/'README.md').read_text().strip() == render_readme(index).strip(), 'README.md is made from nbs/index.ipynb: run make readme'


def test_contents_are_the_titles_and_questions():
    "Every table between `<!-- contents -->` and `<!-- /contents -->`; each `99_*` notebook has one."
    from xmodaler_nb.utils.docs import fill_contents, notebook_paths
    paths = notebook_paths(ROOT/'nbs')
    old = [p.relative_to(ROOT).as_posix() for p in paths if fill_contents(p, write=False)]
    assert not old, f'old tables of contents, run make contents: {old}'
    without = [p.name for p in paths if p.name.startswith('99_') and '<!-- contents -->' not in p.read_text(encoding='utf-8')]
    assert not without


def test_listed_notebooks_have_a_question():
    from xmodaler_nb.utils.docs import listed_notebooks, notebook_heading, notebook_paths
    tables = [p for p in notebook_paths(ROOT/'nbs') if p.name.startswith('99_')]
    mute = [p.relative_to(ROOT).as_posix() for t in tables for p in listed_notebooks(t.parent) if not all(notebook_heading(p))]
    assert not mute
