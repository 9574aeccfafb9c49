"Pictures, clips and features as people have them: every type, range, channel order and number of dimensions is read rightly or refused with a sentence."
import itertools
import struct
import warnings
from pathlib import Path
import numpy as np
import pytest
import torch
from PIL import Image
from xmodaler_nb.datasets.pictures import as_bytes, load_clip, load_picture, read_clip
from xmodaler_nb.own.scenes.features import ClipFeatures, SceneFeatures, as_rgb

RAMP = np.arange(256, dtype=np.uint8)
PICTURE = np.random.default_rng(0).integers(0, 256, (6, 10, 3), dtype=np.uint8)
PICTURE[0, 0] = 255

# type → (what white is in it, ranges that are read)
WHOLE = dict(uint8=(255, {255}), uint16=(65535, {65535}), uint32=(2**32 - 1, {2**32 - 1}), uint64=(2**64 - 1, {2**64 - 1}),
             int16=(255, {255}), int32=(255, {255}), int64=(255, {255}), int8=(None, set()))
FLOATS = 'float16 float32 float64'.split()


def in_type(dtype, white):
    "The picture with `white` for 255; None where the type cannot hold it."
    if np.dtype(dtype).kind == 'f':
        with np.errstate(over='ignore'): return (PICTURE.astype(np.float64)*(white/255)).astype(dtype)
    if white > np.iinfo(dtype).max: return None
    if white % 255 == 0: return PICTURE.astype(dtype)*np.array(white//255, dtype)
    return None


CASES = [(t, w) for t in [*WHOLE, *FLOATS] for w in (1, 255, 4095, 65535, 2**32 - 1, 2**64 - 1)]

def wanted(dtype, white):
    "Whether a picture of that type and range is read; else it is refused."
    return white in (1, 255) if dtype in FLOATS else white in WHOLE[dtype][1]


def orders(a):
    "name → the same picture in each order and number of dimensions."
    return {'hwc': a, 'chw': a.transpose(2, 0, 1)}


@pytest.mark.parametrize('dtype, white', CASES)
@pytest.mark.parametrize('order', ['hwc', 'chw'])
@pytest.mark.parametrize('kind', ['numpy', 'torch'])
def test_the_table_of_types_ranges_and_orders(dtype, white, order, kind):
    a = in_type(dtype, white)
    if a is None: return None if np.dtype(dtype).kind != 'f' else pytest.fail('a float holds every range')
    if np.dtype(dtype) == 'float16' and white > 65504: a = np.full_like(a, np.inf)
    x = np.ascontiguousarray(orders(a)[order])
    x = torch.from_numpy(x) if kind == 'torch' else x
    for read in (load_picture, as_rgb):
        if wanted(dtype, white):
            got = read(x)
            assert got.dtype == np.uint8 and got.shape == PICTURE.shape
            assert abs(got.astype(int) - PICTURE).max() <= (1 if dtype == 'float16' else 0)
        else:
            with pytest.raises(ValueError, match='the picture holds') as e: read(x)
            assert dtype in str(e.value) or 'infinite' in str(e.value)


@pytest.mark.parametrize('x', [np.full((6, 10, 3), 1j), np.full((6, 10, 3), 'a'), np.full((6, 10, 3), None), None, {}, np.zeros((6, 10, 3), 'M8[s]'),
                               np.full((6, 10, 3), np.nan), np.full((6, 10, 3), -np.inf), PICTURE/127.5 - 1, (PICTURE/255 - .45)/.22, PICTURE*300., PICTURE/255*2,
                               np.zeros((6, 10, 3), np.int8), PICTURE.astype(int) - 3, PICTURE.astype(np.uint16)])
def test_what_is_no_picture_is_refused(x):
    for read in (load_picture, as_rgb):
        with pytest.raises(ValueError, match='the picture h'): read(x)


@pytest.mark.parametrize('n', range(5))
def test_every_number_of_dimensions(n):
    for shape in itertools.product((0, 1, 2, 3, 4, 7), repeat=n): check_shape(shape)


def check_shape(shape):
    "Read where one order fits, and then rightly; else refused with the sizes in the sentence."
    a = np.random.default_rng(0).integers(1, 256, shape, dtype=np.uint8)
    ok = (1, 3, 4)
    first, last = (len(shape) == 3 and shape[k] in ok for k in (0, 2))
    if (len(shape) == 2 or first != last) and 0 not in shape:
        hwc = a[..., None] if a.ndim == 2 else a if last else a.transpose(1, 2, 0)
        if hwc.shape[2] == 4: hwc = hwc[..., :3]*(hwc[..., 3:]/255.) + 255 - hwc[..., 3:]      # on white paper
        assert abs(load_picture(a) - hwc.astype(float)).max() <= .51 and load_picture(a).shape == (*hwc.shape[:2], 3)
        return
    with pytest.raises(ValueError) as e: load_picture(a)
    assert str(shape) in str(e.value)


def test_bfloat16_devices_and_gradients():
    x = torch.tensor(PICTURE/255).permute(2, 0, 1).bfloat16().requires_grad_()
    assert abs(load_picture(x).astype(int) - PICTURE).max() <= 2
    assert (load_picture(torch.from_numpy(PICTURE) > 128) == (PICTURE > 128)*255).all()


def test_what_resizing_overshoots():
    up = torch.nn.functional.interpolate(torch.tensor([[[[0., 1.]*8]*16]*3]), scale_factor=2.5, mode='bicubic')[0]
    assert up.min() < -.01 and up.max() > 1.01
    assert load_picture(up).max() == 255 and load_picture(up).min() == 0


# files

def save_tiff(path, a, sample_format, photometric=1):
    "A grey TIFF of one strip, written here byte by byte."
    h, w = a.shape
    data = np.ascontiguousarray(a).tobytes()
    tags = [(256, 4, w), (257, 4, h), (258, 3, a.dtype.itemsize*8), (259, 3, 1), (262, 3, photometric), (273, 4, 8), (277, 3, 1), (278, 4, h), (279, 4, len(data)), (339, 3, sample_format)]
    body = b''.join(struct.pack('<HHII', t, k, 1, v) for t, k, v in tags)
    Path(path).write_bytes(b'II*\0' + struct.pack('<I', 8 + len(data)) + data + struct.pack('<H', len(tags)) + body + b'\0'*4)


DEEP = {'16 bits': (RAMP.astype('<u2')*257, 1), '16 bits signed': ((RAMP/255*32767).round().astype('<i2'), 2), '32 bits': (RAMP.astype('<u4')*(2**24 + 2**16 + 257), 1),
        '32 bits signed': ((RAMP/255*(2**31 - 1)).round().astype('<i4'), 2), 'floats to 1': ((RAMP/255).astype('<f4'), 3), 'floats to 255': (RAMP.astype('<f4'), 3), '8 bits': (RAMP, 1)}

@pytest.mark.parametrize('name', DEEP)
@pytest.mark.parametrize('photometric', [1, 0])
def test_deep_pictures_keep_their_greys(tmp_path, name, photometric):
    "A ramp of 256 greys stays one; with the photometric interpretation 0, white is zero."
    a, sample_format = DEEP[name]
    save_tiff(tmp_path/'a.tif', np.repeat(a[None], 2, 0), sample_format, photometric)
    try: got = load_picture(tmp_path/'a.tif')
    except ValueError as e:
        assert photometric == 0 and 'cannot identify' in str(e)       # Pillow reads no such file: refused by name
        return
    assert (got[0, :, 0] == (RAMP if photometric else 255 - RAMP)).all()


def test_deep_png_and_pgm(tmp_path):
    deep = RAMP.astype('>u2')*257
    Image.fromarray(deep.astype(np.uint16)[None]).save(tmp_path/'a.png')
    (tmp_path/'a.ppm').write_bytes(b'P5 256 1 65535\n' + deep.tobytes())
    for name in ('a.png', 'a.ppm'):
        assert (load_picture(tmp_path/name)[0, :, 0] == RAMP).all()
        with Image.open(tmp_path/name) as img: assert (load_picture(img)[0, :, 0] == RAMP).all()
    with Image.open(tmp_path/'a.png') as img: assert (load_picture(img.convert('I'))[0, :, 0] == RAMP).all()


def test_floats_out_of_range_name_the_file(tmp_path):
    save_tiff(tmp_path/'a.tif', (RAMP*10.)[None].astype('<f4'), 3)
    with pytest.raises(ValueError, match=r'a.tif holds float32 from 0 to 2550; floats are read as \[0,1\]'): load_picture(tmp_path/'a.tif')


@pytest.mark.parametrize('orientation', range(10))
@pytest.mark.parametrize('ending', ['jpg', 'png', 'webp', 'tif'])
def test_exif_orientation(tmp_path, orientation, ending):
    "As stored → as seen, for all eight orientations; an unknown number changes nothing."
    def turned(a): return {2: np.fliplr(a), 3: np.rot90(a, 2), 4: np.flipud(a), 5: a.transpose(1, 0, 2), 6: np.rot90(a, -1), 7: np.rot90(a, 2).transpose(1, 0, 2), 8: np.rot90(a)}.get(orientation, a)
    stored = np.zeros((32, 48, 3), np.uint8)
    stored[:16, :16], stored[:16, 32:], stored[16:, :16] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    exif = Image.Exif(); exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path/f'a.{ending}', exif=exif, quality=100)
    got = load_picture(tmp_path/f'a.{ending}')
    assert got.shape == turned(stored).shape and abs(got[8::16, 8::16].astype(int) - turned(stored)[8::16, 8::16]).max() < 40


def test_broken_exif_is_no_orientation(tmp_path):
    img = Image.fromarray(PICTURE)
    img.save(tmp_path/'a.png', exif=b'Exif\0\0II*\0\xff\xff\xff\x7f')
    assert (load_picture(tmp_path/'a.png') == PICTURE).all()


def test_palette_alpha_cmyk_animated(tmp_path):
    "Palette and CMYK become RGB, the transparent becomes white, of several frames the first counts."
    rgba = np.dstack([np.zeros((4, 8, 3), np.uint8), np.repeat(np.array([[0, 255]*4], np.uint8), 4, 0)])
    on_white = np.repeat(255 - rgba[..., 3:], 3, 2)
    Image.fromarray(rgba).save(tmp_path/'rgba.png')
    Image.fromarray(rgba[..., [0, 3]], 'LA').save(tmp_path/'la.png')
    p = Image.fromarray(rgba[..., 3]//255, 'P'); p.putpalette([9, 9, 9, 0, 0, 0]); p.save(tmp_path/'p.png', transparency=0); p.save(tmp_path/'p.gif', transparency=0)
    for name in ('rgba.png', 'la.png', 'p.png', 'p.gif'): assert (load_picture(tmp_path/name) == on_white).all(), name
    Image.new('L', (5, 4), 7).save(tmp_path/'key.png', transparency=7)
    Image.new('RGB', (5, 4), (7, 8, 9)).save(tmp_path/'key2.png', transparency=(7, 8, 9))
    for name in ('key.png', 'key2.png'): assert (load_picture(tmp_path/name) == 255).all(), name
    Image.new('CMYK', (5, 4), (255, 0, 0, 0)).save(tmp_path/'c.jpg', quality=100)
    assert abs(load_picture(tmp_path/'c.jpg')[0, 0].astype(int) - (0, 255, 255)).max() < 12
    frames = [Image.new('RGB', (5, 4), (k, k, k)) for k in (40, 80)]
    for name in ('a.gif', 'a.webp', 'a.tif'):
        frames[0].save(tmp_path/name, save_all=True, append_images=frames[1:], **({'lossless': True} if name.endswith('webp') else {}))
        assert (load_picture(tmp_path/name) == 40).all(), name
    assert [int(f[0, 0, 0]) for f in read_clip(tmp_path/'a.gif')] == [40, 80]


def bomb(path):
    "A PNG of a few bytes that declares 60,000 × 60,000 pixels."
    import zlib
    chunk = lambda k, b: struct.pack('>I', len(b)) + k + b + struct.pack('>I', zlib.crc32(k + b))
    Path(path).write_bytes(b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', 60000, 60000, 8, 2, 0, 0, 0)) + chunk(b'IDAT', zlib.compress(b'\0'*1000)) + chunk(b'IEND', b''))


def test_a_decompression_bomb_is_a_sentence(tmp_path):
    bomb(tmp_path/'b.png')
    with pytest.raises(ValueError, match='b.png is not read, because it declares more pixels than PIL.Image.MAX_IMAGE_PIXELS'): load_picture(tmp_path/'b.png')


def test_damaged_files_are_sentences(tmp_path):
    "Every byte position of small pictures cut off or changed: read, or a ValueError that names the file."
    rng = np.random.default_rng(0)
    for ending in ('png', 'jpg', 'gif', 'tif', 'bmp', 'webp', 'ppm'):
        path = tmp_path/f'a.{ending}'
        Image.fromarray(PICTURE).save(path)
        whole = path.read_bytes()
        for k in range(60):
            b = bytearray(whole)
            if k % 3 == 0: b = b[:int(rng.integers(len(b)))]
            else:
                for _ in range(3): b[int(rng.integers(min(len(b), 200)))] = int(rng.integers(256))
            path.write_bytes(bytes(b))
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                try: load_picture(path)
                except ValueError as e: assert str(path) in str(e)


# clips

def test_the_range_of_a_clip_is_that_of_all_frames():
    "A dark frame among bright ones stays dark, in whatever form the clip comes."
    clip = np.stack([np.full((6, 10, 3), v) for v in (0., .9, 200.)])
    forms = [clip, list(clip), torch.tensor(clip), torch.tensor(clip).permute(0, 3, 1, 2), clip.astype(np.float32)]
    for x in forms: assert [int(f.max()) for f in load_clip(x)] == [0, 1, 200]
    sixteen = np.stack([np.full((6, 10, 3), v, np.uint16) for v in (100, 65535)])
    assert [int(f.max()) for f in load_clip(sixteen)] == [0, 255]
    got = ClipFeatures()(clip)['features']
    assert np.array_equal(got, ClipFeatures()(np.stack(load_clip(clip)))['features'])


@pytest.mark.parametrize('shape', [(6, 10, 3), (2, 3, 6, 10, 3), (2, 6, 10, 5), (0, 6, 10, 3), (2, 0, 10, 3)])
def test_what_is_no_clip_is_refused(shape):
    with pytest.raises(ValueError, match=r'sizes \('): load_clip(np.zeros(shape, np.uint8))


def test_a_clip_file_that_declares_more_than_there_is(tmp_path):
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000, 1000, 3), }"
    (tmp_path/'a.npy').write_bytes(b'\x93NUMPY\x01\0' + struct.pack('<H', len(header) + 1) + header + b'\n')
    with pytest.raises(ValueError, match='a.npy: not a readable clip'): read_clip(tmp_path/'a.npy')


def video(path, n=8, size=(64, 48)):
    "A clip whose left half is red."
    av = pytest.importorskip('av')
    with av.open(str(path), 'w') as f:
        stream = f.add_stream('mpeg4', rate=8); stream.width, stream.height, stream.pix_fmt = *size, 'yuv420p'
        stream.bit_rate = 10**6
        for k in range(n):
            a = np.full((size[1], size[0], 3), 30*k, np.uint8); a[:, :size[0]//2] = (255, 0, 0)
            for p in stream.encode(av.VideoFrame.from_ndarray(a, format='rgb24')): f.mux(p)
        for p in stream.encode(): f.mux(p)


MATRICES = {0: (1, 0, 0, 1), 90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0), 'mirror': (-1, 0, 0, 1), 'diagonal': (0, 1, 1, 0)}
RED_SIDE = {0: 'left', 90: 'top', 180: 'right', 270: 'bottom', 'mirror': 'right', 'diagonal': 'top'}

@pytest.mark.parametrize('turn', MATRICES)
def test_the_display_matrix_of_an_mp4(tmp_path, turn):
    "The matrix in the track header, written as a phone writes it."
    video(tmp_path/'a.mp4')
    b = bytearray((tmp_path/'a.mp4').read_bytes())
    at = b.index(b'tkhd') + 4 + 40
    a, bb, c, d = (v*2**16 for v in MATRICES[turn])
    b[at:at + 36] = struct.pack('>9i', a, bb, 0, c, d, 0, 0, 0, 2**30)
    (tmp_path/'a.mp4').write_bytes(bytes(b))
    frame = read_clip(tmp_path/'a.mp4', 3)[0].astype(int)
    assert frame.shape == ((64, 48, 3) if turn in (90, 270, 'diagonal') else (48, 64, 3))
    h, w = frame.shape[:2]
    sides = dict(left=frame[h//2, 4], right=frame[h//2, -5], top=frame[4, w//2], bottom=frame[-5, w//2])
    red = {k for k, v in sides.items() if v[0] > 200 and v[1] < 60}
    opposite = dict(left='right', right='left', top='bottom', bottom='top')
    assert RED_SIDE[turn] in red and opposite[RED_SIDE[turn]] not in red


def test_the_number_of_frames_in_the_header_may_be_wrong(tmp_path):
    "A cut-off or lying container: the frames that are there are taken."
    av = pytest.importorskip('av')
    video(tmp_path/'a.avi', n=8)
    b = bytearray((tmp_path/'a.avi').read_bytes())
    at = b.index(b'strh') + 8 + 32
    b[at:at + 4] = struct.pack('<I', 8000)
    at = b.index(b'avih') + 8 + 16
    b[at:at + 4] = struct.pack('<I', 8000)
    (tmp_path/'a.avi').write_bytes(bytes(b))
    assert len(read_clip(tmp_path/'a.avi', 4)) == 4
    (tmp_path/'text.mp4').write_text('this is no clip')
    with pytest.raises(ValueError, match='text.mp4: not a readable clip'): read_clip(tmp_path/'text.mp4')


@pytest.mark.parametrize('dtype', ['uint16', 'int32', 'uint32'])
def test_a_file_whose_numbers_are_not_of_its_range(tmp_path, dtype):
    "Bytes in a file for deeper greys would be black; an array of them is refused, and so is the file, and the PIL image."
    path = tmp_path/'a.tif'
    if dtype == 'uint32': save_tiff(path, RAMP[None].astype('<u4'), 1)
    else: Image.fromarray(RAMP.astype(dtype)[None]).save(path)
    with pytest.raises(ValueError, match=r'a.tif holds whole numbers up to 2\d\d, which is black in the range'): load_picture(path)
    if dtype != 'uint32':
        with pytest.raises(ValueError, match='which is black in the range'): load_picture(Image.fromarray(RAMP.astype(dtype)[None]))
    Image.fromarray(np.zeros((4, 4), 'u2')).save(path)
    assert not load_picture(path).any()                                   # all black is black
