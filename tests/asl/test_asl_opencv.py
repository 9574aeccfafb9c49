"Signs through OpenCV: a film that OpenCV wrote and reads, windows that are not there, models that read prepared clips."
import numpy as np
import pytest
import torch
from xmodaler_nb.asl import predict_on_camera as cam, predict_on_video as pov, video_utils as vu
from xmodaler_nb.asl.data.resample import prepare_clips
from xmodaler_nb.asl.signer.machine import SignerModel
from xmodaler_nb.asl.signs import make_signs, sign_rows
from test_asl_video import Display

cv2 = pytest.importorskip('cv2')
RED = (220, 40, 30)


class Cv2:
    "OpenCV with windows: what was shown, and a key after some frames."
    def __init__(self, key_after): self.shown, self.left, self.closed = [], key_after, False
    def getBuildInformation(self): return 'Video I/O:\n  GUI:                           GTK3\n'
    def imshow(self, title, frame): self.shown.append((title, frame))
    def destroyAllWindows(self): self.closed = True
    def waitKey(self, ms):
        self.left -= 1
        return 0x100071 if self.left <= 0 else -1              # `q` with a modifier's bit


@pytest.fixture(scope='module')
def film(tmp_path_factory):
    "24 red pictures, written by OpenCV."
    path = tmp_path_factory.mktemp('film')/'wave.mp4'
    out = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'mp4v'), 25, (64, 48))
    if not out.isOpened(): pytest.skip('this OpenCV cannot write mp4')
    for _ in range(24): out.write(np.full((48, 64, 3), RED[::-1], np.uint8))
    out.release()
    return path


@pytest.fixture(scope='module')
def rows(): return sign_rows('lift', 0, frames=24, camera=False)


@pytest.fixture(scope='module')
def signer():
    clips = make_signs(signs=12, signers=3, takes=1)
    keep = np.isin(clips.sign, [clips.names.index(n) for n in ('wave', 'lift', 'tap')])
    x = prepare_clips(clips)
    return SignerModel(clips.names).fit_vectors(SignerModel(clips.names).measure(x[keep]), clips.sign[keep])


def test_film_through_opencv(film, rows, signer):
    "Colours in the right order on both ways of reading; the sign is read although this model wants no standardised frames."
    seen = []
    detector = vu.ReplayDetector(rows)
    def watched(frame):
        seen.append(frame[24,32])
        return detector(frame)
    display = Display()
    assert cam.show_camera_feed(signer, 20, str(film), watched, display) == 'lift'
    assert len(display.frames) == 24 and display.closed
    assert np.abs(np.array(seen).astype(int) - RED).max() < 30
    assert np.abs(vu.capture_frames(film)[:,24,32].astype(int) - RED).max() < 30


def test_video_with_a_model_of_prepared_clips(film, rows, signer):
    display = Display(50)
    assert pov.play_video_with_predictions(film, signer, 1, detector=vu.ReplayDetector(rows), display=display) == ['lift']
    assert len(display.frames) == 50 and display.closed


def test_window_is_opencvs(film, rows, signer, monkeypatch):
    "Blue first in the window; `q` ends; the window is closed."
    window = Cv2(7)
    monkeypatch.setattr(pov, 'import_optional', lambda module, extra: window)
    pov.play_video_with_predictions(film, signer, 1, 'lift', show_mesh=False, detector=vu.ReplayDetector(rows))
    assert len(window.shown) == 7 and window.closed
    title, frame = window.shown[0]
    assert title.endswith('wave.mp4') and np.abs(frame[40,60].astype(int) - RED[::-1]).max() < 30


def test_no_windows_is_said_before_the_work(film, signer):
    if not any('GUI:' in line and 'NONE' in line for line in cv2.getBuildInformation().splitlines()): pytest.skip('this OpenCV has windows')
    def detector(frame): raise AssertionError('a frame was looked at')
    for f in (lambda: pov.play_video_with_predictions(film, signer, 1, detector=detector), lambda: cam.show_camera_feed(signer, capture=str(film), detector=detector)):
        with pytest.raises(ImportError, match='without windows .* pass a display'): f()


def test_a_film_that_is_not_one(tmp_path, signer):
    (tmp_path/'broken.mp4').write_bytes(b'\0'*999)
    with pytest.raises(OSError, match='broken.mp4: the camera or file cannot be opened'):
        cam.show_camera_feed(signer, capture=str(tmp_path/'broken.mp4'), detector=lambda f: None, display=Display())


def test_a_film_without_a_person(film, signer):
    display = Display()
    nobody = np.full((543, 3), np.nan)
    assert cam.show_camera_feed(signer, 20, str(film), lambda frame: nobody, display) is None
    with pytest.raises(ValueError, match='no hand was seen in any of its 24 frames'): vu.get_video_landmarks(film, lambda frame: nobody)
    assert len(display.frames) == 24


def test_form_of_a_clip_is_the_models(signer):
    clip = np.random.default_rng(0).random((32, 96, 2)).astype(np.float32)
    assert pov.as_read(signer, clip) is clip and abs(pov.as_read(torch.nn.Identity(), clip).mean(1)).max() < 1e-4
