"Signs: videos and cameras without MediaPipe, OpenCV or a window."
import sys
from types import ModuleType, SimpleNamespace
import numpy as np
import pytest
import torch
from PIL import Image
from xmodaler_nb.asl import predict_on_camera as cam, predict_on_video as pov, video_utils as vu
from xmodaler_nb.asl.augmentations import standardize
from xmodaler_nb.asl.data.dataset import ASL_DATASET
from xmodaler_nb.asl.data.resample import preprocess_data_to_same_size
from xmodaler_nb.asl.signs import make_signs, sign_rows
from xmodaler_nb.asl.visualizations import visualize_augmentations, visualize_target_samples, visualize_target_sign


class Model(torch.nn.Module):
    "Three classes whose logits do not depend on the clip."
    names = ['a', 'b', 'c']
    def forward(self, x):
        assert x.shape == (1, 32, 96, 2) and x.dtype == torch.float32
        return torch.tensor([[1., 3., 2.]])


class Display:
    def __init__(self, most=10**6): self.frames, self.most, self.closed = [], most, False
    def show(self, frame):
        self.frames.append(frame)
        return len(self.frames) < self.most
    def close(self): self.closed = True


class Camera:
    "Blue frames, in OpenCV's order."
    def __init__(self, n, opened=True): self.n, self.opened, self.released = n, opened, False
    def isOpened(self): return self.opened
    def release(self): self.released = True
    def read(self):
        self.n -= 1
        return self.n >= 0, np.full((12, 16, 3), [200, 60, 20], np.uint8)


@pytest.fixture
def film(tmp_path):
    pictures = [Image.new('RGB', (32, 24), (10*i,)*3) for i in range(20)]
    pictures[0].save(tmp_path/'film.gif', save_all=True, append_images=pictures[1:], duration=40)
    return tmp_path/'film.gif'


def test_short_clips_are_spread(film):
    "The original's step total // n is 0 for a short clip: the first frame, n times."
    assert [i*(20//32) for i in range(32)] == [0]*32                     # as documented
    indices = vu.evenly_spaced_frames(20, 32)
    assert len(indices) == 32 and set(indices) == set(range(20)) and indices == sorted(indices)
    assert vu.capture_frames(film).shape == (20, 24, 32, 3)
    assert len(np.unique(vu.capture_frames(film, 32)[:,0,0,0])) == 20
    assert vu.evenly_spaced_frames(100, 5) == [0, 25, 50, 74, 99] and vu.evenly_spaced_frames(1, 3) == [0, 0, 0]


def test_detector_sees_red_first():
    "OpenCV's frames are turned around before the detector, which sees them as they are otherwise."
    seen = []
    def detector(frame):
        seen.append(frame[0,0].tolist())
        return np.full((543, 3), np.nan)
    cam.show_camera_feed(Model(), capture=0, detector=detector, display=Display(), opened=Camera(2))
    assert seen == [[20, 60, 200]]*2


def test_rows_and_missing_parts():
    rows = sign_rows('wave', 1, frames=9)
    np.testing.assert_array_equal(vu.convert_frames_to_landmarks(np.zeros((9, 4, 4, 3), np.uint8), vu.ReplayDetector(rows)), rows)
    results = vu.ReplayDetector(rows)(None)
    table = vu.convert_mp_to_df(results)
    assert len(table) == 543 and table.type.tolist()[468] == 'left_hand'
    results.pose_landmarks.landmark.pop()
    with pytest.raises(ValueError, match='pose_landmarks: 33 landmarks are expected, the detector gave 32'): vu.results_to_rows(results)
    results = vu.ReplayDetector(rows)(None)
    results.face_landmarks.landmark += results.face_landmarks.landmark[:10]           # a refined face
    np.testing.assert_array_equal(vu.results_to_rows(results), rows[0])
    assert vu.convert_frames_to_landmarks([], vu.ReplayDetector(rows)).shape == (0, 543, 3)


@pytest.mark.parametrize('n', [5, 32, 60])
def test_x_and_y_before_resampling(film, n):
    "The original resamples with z and breaks for long clips."
    rows = sign_rows('wave', 1, frames=n, camera=False)
    pictures = [Image.new('RGB', (16, 12), (4*i,)*3) for i in range(n)]
    pictures[0].save(film, save_all=True, append_images=pictures[1:], duration=40)
    got = vu.get_video_landmarks(film, vu.ReplayDetector(rows))
    np.testing.assert_array_equal(got, preprocess_data_to_same_size(rows[...,:2])[0])


def test_no_person_and_broken_files(film, tmp_path):
    with pytest.raises(ValueError, match='no hand was seen in any of its 20 frames'): vu.get_video_landmarks(film, lambda f: np.full((543, 3), np.nan))
    (tmp_path/'broken.mp4').write_bytes(b'\0'*400)
    cache = tmp_path/'cache'
    with pytest.raises(ValueError, match='broken.mp4'): vu.get_video_landmarks(tmp_path/'broken.mp4', Model(), cache)
    with pytest.raises(FileNotFoundError, match='gone.mp4'): vu.get_video_landmarks(tmp_path/'gone.mp4', Model(), cache)
    calls = []
    def failing(frame):
        calls.append(1)
        if len(calls) > 9: raise RuntimeError('enough')
        return np.zeros((543, 3))
    with pytest.raises(RuntimeError): vu.video_rows(film, failing, cache)
    assert not cache.exists() or not list(cache.iterdir())               # nothing half-written


def test_cache_notices_a_new_video(film, tmp_path):
    rows, other = (sign_rows(s, 1, frames=20) for s in ('wave', 'lift'))
    for _ in range(2): np.testing.assert_array_equal(vu.video_rows(film, vu.ReplayDetector(rows), tmp_path/'c'), rows)
    np.testing.assert_array_equal(vu.video_rows(film, vu.ReplayDetector(other), tmp_path/'c'), rows)      # kept
    Image.new('RGB', (32, 24)).save(film, save_all=True, append_images=[Image.new('RGB', (32, 24), (9, 9, 9))])
    np.testing.assert_array_equal(vu.video_rows(film, vu.ReplayDetector(other), tmp_path/'c'), other[:2])


def test_drawing_leaves_the_frame(film):
    frame, rows = np.full((60, 80, 3), 200, np.uint8), sign_rows('wave', 1, frames=9, camera=False)
    drawn = vu.draw_landmarks_on_frame(frame, rows[4])
    assert (frame == 200).all() and (drawn != 200).any()
    assert (vu.draw_landmarks_on_frame(frame, np.full((543, 3), np.nan)) == 200).all()


def test_best_first():
    clip = standardize(np.random.default_rng(0).random((32, 96, 2)))
    assert pov.get_top_n_predictions(Model(), clip, 2) == ['b', 'c']
    names, p = zip(*pov.top_signs(Model(), clip, 9))
    assert names == ('b', 'c', 'a') and sum(p) == pytest.approx(1) and list(p) == sorted(p, reverse=True)


def test_video_is_played_until_q(film):
    rows = sign_rows('wave', 1, frames=20)
    for most, shown in ((25, 25), (10**6, 200)):
        display = Display(most)
        assert pov.play_video_with_predictions(film, Model(), 2, 'b', detector=vu.ReplayDetector(rows), display=display) == ['b', 'c']
        assert len(display.frames) == shown and display.closed
    with pytest.raises(FileNotFoundError, match='no .mp4'): pov.get_random_video(film.parent)
    (film.parent/'deep').mkdir()
    (film.parent/'deep'/'x.mp4').touch()
    assert pov.get_random_video(film.parent).endswith('x.mp4')


def test_camera_says_nothing_without_hands():
    rows = sign_rows('lift', 0, frames=40, camera=False)
    rows[...,1] *= .8                                                    # both hands stay in the picture
    assert [n for n, _ in cam.read_window(Model(), rows)] == ['b', 'c', 'a']
    rows[:,468:489] = np.nan                                             # one hand of two: half of the numbers
    assert cam.read_window(Model(), rows) == [] and cam.read_window(Model(), rows, max_missing=.6)
    assert cam.read_window(Model(), np.full((32, 543, 3), np.nan)) == []


def test_camera_window_slides_and_closes(capsys):
    rows = sign_rows('lift', 0, frames=40, camera=False)
    said = [s for _, _, s in cam.read_stream(np.zeros((40, 4, 4, 3), np.uint8), Model(), vu.ReplayDetector(rows), 10)]
    assert said[:9] == [[]]*9 and said[20][0][0] == 'b'
    camera, display = Camera(40), Display()
    assert cam.show_camera_feed(Model(), 10, 'x.mp4', vu.ReplayDetector(rows), display, camera) == 'b'
    assert capsys.readouterr().out == 'x.mp4: b\n' and camera.released and display.closed and len(display.frames) == 40
    camera, display = Camera(5, opened=False), Display()
    with pytest.raises(OSError, match='7: the camera or file cannot be opened'): cam.show_camera_feed(Model(), 10, 7, vu.ReplayDetector(rows), display, camera)
    assert camera.released and display.closed


def test_animations(tmp_path):
    ds = ASL_DATASET.from_clips(make_signs(signs=2, signers=2, takes=1))
    film = visualize_target_sign(ds, 'wave', 5)
    assert len(film) == 32 and film.frames[0].width == 2*110
    assert film.save(tmp_path/'x.gif').read_bytes()[:6] == b'GIF89a' and '<img' in film.save(tmp_path/'x.html').read_text()
    assert visualize_augmentations(ds, 1, lambda x: x[::2], 3).frames[0].width == 4*110
    up = visualize_target_samples([ds.read(0)], invert=False)
    assert np.asarray(up.frames[9]).tobytes() != np.asarray(film.frames[9].crop((0, 0, 110, film.frames[9].height))).tobytes()
    with pytest.raises(ValueError, match="no clip of 'x'"): visualize_target_sign(ds, 'x')
    assert len(visualize_target_samples([np.full((4, 96, 2), np.nan)])) == 4           # nothing detected, nothing drawn


def points(rows): return [SimpleNamespace(x=x, y=y, z=z) for x, y, z in rows]


def mediapipe_before(monkeypatch, seen, closed):
    "MediaPipe with `solutions`: parts are objects with a list, or None."
    class Holistic:
        def __init__(self, **options): seen.append(options)
        def __enter__(self): return self
        def __exit__(self, *args): closed.append(True)
        def process(self, frame):
            seen.append(frame[0,0].tolist())
            return SimpleNamespace(face_landmarks=None, pose_landmarks=None, left_hand_landmarks=None, right_hand_landmarks=SimpleNamespace(landmark=points(np.full((21, 3), .5))))
    monkeypatch.setitem(sys.modules, 'mediapipe', ModuleType('mediapipe'))
    for name in ('mediapipe.python', 'mediapipe.python.solutions'): monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, 'mediapipe.python.solutions.holistic', SimpleNamespace(Holistic=Holistic))


def mediapipe_now(monkeypatch, seen, closed):
    "MediaPipe with tasks only: parts are lists, perhaps empty; a picture is an `Image`; the model is a file."
    class HolisticLandmarker:
        @classmethod
        def create_from_model_path(cls, path):
            seen.append(path)
            return cls()
        def __enter__(self): return self
        def __exit__(self, *args): closed.append(True)
        def detect(self, image):
            assert image.format == 'SRGB' and image.data.flags.c_contiguous
            seen.append(image.data[0,0].tolist())
            return SimpleNamespace(face_landmarks=[], pose_landmarks=[], left_hand_landmarks=[], right_hand_landmarks=points(np.full((21, 3), .5)))
    package = SimpleNamespace(Image=lambda image_format, data: SimpleNamespace(format=image_format, data=data), ImageFormat=SimpleNamespace(SRGB='SRGB'))
    for name in [m for m in sys.modules if m.startswith('mediapipe.')]: monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, 'mediapipe', package)
    monkeypatch.setitem(sys.modules, 'mediapipe.tasks.python.vision.holistic_landmarker', SimpleNamespace(HolisticLandmarker=HolisticLandmarker))


@pytest.mark.parametrize('version', [mediapipe_before, mediapipe_now], ids=['before', 'now'])
def test_both_interfaces_of_mediapipe(version, monkeypatch, tmp_path):
    seen, closed = [], []
    version(monkeypatch, seen, closed)
    (tmp_path/'holistic_landmarker.task').touch()
    monkeypatch.setenv(vu.HOLISTIC, str(tmp_path/'holistic_landmarker.task'))
    rows = vu.convert_frames_to_landmarks(np.full((2, 4, 4, 3), (200, 60, 20), np.uint8)[...,::-1])
    assert rows.shape == (2, 543, 3) and (rows[:,522:] == .5).all() and np.isnan(rows[:,:522]).all()
    assert seen[1:] == [[20, 60, 200]]*2 and closed == [True]


def test_todays_mediapipe_wants_a_model(monkeypatch):
    mediapipe_now(monkeypatch, [], [])
    monkeypatch.delenv(vu.HOLISTIC, raising=False)
    with pytest.raises(ValueError, match='get holistic_landmarker.task .* XMODALER_HOLISTIC'): vu.convert_frames_to_landmarks([np.zeros((4, 4, 3), np.uint8)])
    with pytest.raises(FileNotFoundError, match='gone.task: no such model'):
        with vu.make_detector('gone.task'): pass
