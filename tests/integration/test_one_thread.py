"A few pictures are captioned with one thread of torch, and the number of threads is as before afterwards."
import threading
import numpy as np
import pytest
import torch
from xmodaler_nb.captioner import Captioner
from xmodaler_nb.captioner.captioner import one_thread


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope='module')
def captioner(): return Captioner.from_pretrained('photos')


def test_few_pictures_and_many(captioner, monkeypatch):
    seen, pictures = [], list(np.random.default_rng(0).integers(0, 256, (5, 48, 64, 3), dtype=np.uint8))
    decode = type(captioner)._decode
    def note(self, *args):
        seen.append(torch.get_num_threads())
        return decode(self, *args)
    monkeypatch.setattr(type(captioner), '_decode', note)
    one, four, five = captioner.caption(pictures[0]), captioner.caption(pictures[:4]), captioner.caption(pictures)
    assert seen == [1, 1, 2] and torch.get_num_threads() == 2
    assert isinstance(one, str) and len(four) == 4 and len(five) == 5


def test_after_an_error(captioner):
    with pytest.raises(Exception): captioner.caption('no-such-picture.jpg')
    assert torch.get_num_threads() == 2


def test_blocks_in_two_threads_of_the_program():
    "A thread that begins while another one is inside gets the program's number back, not that of the block."
    after = []
    def other():
        with one_thread(): pass
        after.append(torch.get_num_threads())
    with one_thread():
        t = threading.Thread(target=other)
        t.start()
        t.join()
        with one_thread(): assert torch.get_num_threads() == 1
    assert after == [2] and torch.get_num_threads() == 2
