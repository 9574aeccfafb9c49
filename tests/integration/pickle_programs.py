"Random programs for the pickle machine, run in a process of its own with limits: `python pickle_programs.py count seed [pth]`."
import io
import os
import pickle
import random
import resource
import signal
import struct
import sys
import time
import zipfile
import numpy as np
import torch
from xmodaler_nb.utils.safe_pickle import safe_loads
from xmodaler_nb.utils.torch_files import read_torch_file

MEMORY, SECONDS = 3*2**30, 2.               # of address space, and for one program
NAMES = ['numpy\nndarray', 'numpy\ndtype', *(f'numpy.{c}.multiarray\n{n}' for c in ('core', '_core') for n in ('scalar', '_reconstruct')),
         'numpy._core.numeric\n_frombuffer', '_codecs\nencode', 'collections\nOrderedDict', 'collections\ndefaultdict', 'builtins\nset', '__builtin__\nunicode',
         *(f'builtins\n{n}' for n in ('list', 'dict', 'frozenset', 'tuple', 'bytearray', 'bytes', 'int', 'float', 'complex', 'range', 'str', 'getattr', 'eval', 'type')),
         'os\nsystem', 'torch._utils\n_rebuild_tensor_v2', 'torch._utils\n_rebuild_parameter', 'torch\nFloatStorage', 'torch\nfloat32', 'torch\nSize', 'torch\ndevice', 'numpy\nvoid']
PLAIN = (str, int, float, bool, complex, type(None), bytes, bytearray, range, np.generic)
DTYPE = b'cnumpy\ndtype\n(X\x02\x00\x00\x00%sI00\nI01\ntR(K\x03X\x01\x00\x00\x00%sNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK%stb'


def argument(r):
    "A small argument, or an absurd one."
    return r.choice([0, 1, 2, 3, 4, 7, 8, 100, 255, 65_535, 2**24, 2**31 - 1, 2**32 - 1])

def text(r): return bytes(r.choices(b'abO8<>|=f4i2U1S5', k=r.randint(0, 9)))

def dtype(r):
    "A numpy type, most often a forged one."
    return DTYPE % (r.choice([b'O8', b'f4', b'i2', b'U1', b'S3', b'V8', b'b1']), r.choice(b'<>|=x').to_bytes(1, 'little'), bytes([r.randrange(256)]))

def shape(r): return b'(' + b''.join(b'J' + struct.pack('<i', argument(r) % 2**31) for _ in range(r.randint(0, 3))) + b't'

def raw(r): return r.choice([b'C', b'U']) + (lambda b: bytes([len(b)]) + b)(bytes(r.randrange(256) for _ in range(r.choice([0, 1, 4, 8, 16]))))

def array(r):
    "An array whose parts need not agree."
    head = b'cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR'
    return head + b'(K\x01' + shape(r) + dtype(r) + r.choice([b'\x88', b'\x89']) + r.choice([raw(r), b'](K\x01K\x02e']) + b'tb'

def storage(r):
    "A tensor of a torch file, over a storage that may be smaller."
    pid = b'(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuJ' + struct.pack('<i', argument(r) % 2**31) + b'tQ'
    size = b'J' + struct.pack('<i', r.choice([0, 1, 2, -1, 2**30])) + shape(r) + shape(r)
    return b'ctorch._utils\n_rebuild_tensor_v2\n(' + pid + size + b'\x89ccollections\nOrderedDict\n)RtR'

def instruction(r):
    "Any instruction, with an argument of its form."
    op = r.choice(b'.(012FIJKLMNPQRSTUVXabcdeghijlopqrstu)]}G\x80\x81\x82\x85\x86\x87\x88\x89\x8a\x8b\x8c\x8d\x8e\x8f\x90\x91\x92\x93\x94\x95\x96\x97\x98BC').to_bytes(1, 'little')
    if op in b'KhqU\x80\x82\x8a\x8cC': return op + bytes([r.randint(0, 4)]) + (text(r) if op in b'U\x8a\x8cC' else b'')
    if op in b'JjrTXB\x8b': return op + struct.pack('<I', argument(r)) + (text(r) if op in b'TXB\x8b' else b'')
    if op in b'\x8d\x8e\x96': return op + struct.pack('<Q', argument(r)**2) + text(r)
    if op in b'FILPVgp': return op + str(argument(r)).encode() + b'\n'
    if op in b'ci': return op + r.choice(NAMES).encode() + b'\n'
    return {b'M': b'M\x01\x02', b'G': b'G' + bytes(8), b'S': b"S'a'\n", b'\x95': b'\x95' + bytes(8)}.get(op, op)

def program(r):
    "Instructions and larger pieces in any order; a third are damaged copies of a good file."
    if r.random() < .33:
        good = bytearray(pickle.dumps(r.choice(GOOD), protocol=r.randrange(6)))
        for _ in range(r.randint(1, 4)): good[r.randrange(len(good))] = r.randrange(256)
        return bytes(good)
    pieces = [lambda: instruction(r)]*8 + [lambda: dtype(r), lambda: array(r), lambda: storage(r), lambda: raw(r), lambda: b'2\x86'*r.randint(1, 60),
              lambda: b'c' + r.choice(NAMES).encode() + b'\n' + r.choice([b')', b'K\x01\x85', b'(l\x85', raw(r) + b'\x85']) + b'R']
    return b'\x80\x02' + b''.join(r.choice(pieces)() for _ in range(r.randint(1, 25))) + b'.'

GOOD = [[{'image_id': '42', 'tokens_ids': np.arange(6, dtype=np.uint32).reshape(2, 3), 'x': {1, 2}, 'y': (1.5, None, b'raw')}], {('a', 'dog'): 2., 'n': np.float32(3)},
        np.array(['a', 'bc']), np.array([{'a': 1}, None], dtype=object), {'nested': [[[1, 2], [3]], {'k': bytearray(b'x')}]}]


def check_plain(x, depth=0):
    "Only plain data came out, and all of it can be walked through."
    if isinstance(x, np.ndarray): assert x.dtype.kind in 'biufcSU' and x.dtype.flags == np.dtype(x.dtype.str).flags and len(x.tobytes()) == x.nbytes
    elif isinstance(x, dict): [check_plain(v, depth+1) for kv in x.items() for v in kv]
    elif isinstance(x, (list, tuple, set, frozenset)): [check_plain(v, depth+1) for v in x]
    elif isinstance(x, torch.Tensor): x.sum() if x.numel() < 10**7 else None
    else: assert isinstance(x, (*PLAIN, np.dtype, torch.dtype, torch.device)), type(x)

def as_pth(program):
    "A torch archive around a program."
    f = io.BytesIO()
    with zipfile.ZipFile(f, 'w') as z:
        z.writestr('x/data.pkl', program)
        z.writestr('x/data/0', bytes(16))
        z.writestr('x/version', b'3\n')
    return f.getvalue()

def watch():
    "Ends the process when anything is executed, opened for writing or imported from a name in a file."
    def hook(event, args):
        if armed[0] and event in ('exec', 'os.system', 'subprocess.Popen', 'os.exec', 'os.posix_spawn', 'open', 'ctypes.dlopen', 'socket.connect', 'pickle.find_class'):
            os.write(2, f'{event} {args}\n'.encode())
            os._exit(77)
    armed = [False]
    sys.addaudithook(hook)
    return armed

def run(data, pth, armed):
    "Read one program as a user's file is read: 'read' (plain data came out) or 'refused'; anything else is an error."
    armed[0] = True
    try:
        x = read_torch_file(io.BytesIO(data)) if pth else safe_loads(data)
        check_plain(x)
        return 'read'
    except pickle.UnpicklingError: return 'refused'
    finally: armed[0] = False

def seconds_of_processor(data, pth, armed):
    "Asked only of a program that seemed slow: this clock costs a millisecond on some machines."
    start = time.process_time()
    run(data, pth, armed)
    return time.process_time() - start

def main(count, seed, pth):
    "`count` programs, all different; prints how many there were, were read and refused, the slowest and the memory."
    r, armed, outcomes, slowest, seen = random.Random(seed), watch(), {'read': 0, 'refused': 0}, 0., set()
    safe_loads(b'Vwarm\n.'), safe_loads(pickle.dumps(GOOD)), 'x'.encode('cp437')       # what is imported at the first use
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)            # a program that never ends, even where no Python runs
    while len(seen) < count:
        p = program(r)
        if p in seen: continue
        if len(seen) % 100 == 0: signal.setitimer(signal.ITIMER_PROF, 20*SECONDS)       # of processor time, for a hundred
        seen.add(p)
        data, start = as_pth(p) if pth else p, time.perf_counter()
        try:
            outcomes[run(data, pth, armed)] += 1
            took = time.perf_counter() - start
            if took > SECONDS: took = seconds_of_processor(data, pth, armed)            # was the machine busy?
        except BaseException as e: sys.exit(f'program {len(seen)}, seed {seed}: {type(e).__name__} {e}\n{p!r}')
        slowest = max(slowest, took)
        if took > SECONDS: sys.exit(f'program {len(seen)}, seed {seed}: {took:.1f} s\n{p!r}')
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss//1024
    print(len(seen), outcomes['read'], outcomes['refused'], f'{slowest:.3f} s {peak} MB')

if __name__ == '__main__': main(int(sys.argv[1]), int(sys.argv[2]), len(sys.argv) > 3)
