"Files of at most 1 MB, each with a trap: kind → bytes."

DTYPE = b'cnumpy\ndtype\n(X\x02\x00\x00\x00O8I00\nI01\ntR(K\x03X\x01\x00\x00\x00|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb'
POINTER = b'\x80\x04cnumpy.core.multiarray\nscalar\n(' + DTYPE + b'C\x08AAAAAAAAtR.'
SET = b'c__builtin__\nset\n'
FORGED = DTYPE.replace(b'O8', b'f8').replace(b'|', b'<').replace(b'K\x00tb', b'K\x3ftb')
ARRAY = b'\x80\x02cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR(K\x01%s\x89%stb.'

def number(n): return b'J' + n.to_bytes(4, 'little')

SMALL = {'pointer': POINTER, 'object array of raw bytes': ARRAY % (b'K\x01\x85' + DTYPE, b'C\x08AAAAAAAA'), 'object array of 3e8': ARRAY % (number(300_000_000) + b'\x85' + DTYPE, b']'),
         'float array of 1e9': ARRAY % (number(10**9) + b'\x85' + FORGED, b'C\x00'), 'rows without numbers': ARRAY % (number(2**31 - 1) + b'K\x00\x86' + FORGED, b'C\x00'),
         'object rows without numbers': ARRAY % (number(2**31 - 1) + b'K\x00\x86' + DTYPE, b']'), 'shared tuples': b'\x80\x02)' + b'2\x86'*100 + b'.',
         'shared tuples as a key': b'\x80\x02})' + b'2\x86'*100 + b'K\x01s.', 'deep tuple as a key': b'\x80\x02})' + b'\x85'*900_000 + b'K\x01s.', 'deep list': b'\x80\x02' + b']'*400_000 + b'a'*399_999 + b'.',
         'shared tuples in a set': b'\x80\x04\x8f(' + b')' + b'2\x86'*100 + b'\x90.', 'shared tuples in a frozenset': b'\x80\x04()' + b'2\x86'*100 + b'\x91.', 'memo of 2^31': b'\x80\x02Nr\xff\xff\xff\x7f.',
         'text of a shared tuple': b'\x80\x02c__builtin__\nstr\n)' + b'2\x86'*100 + b'\x85R.', 'bytes of 1e12': b'\x80\x04\x8e' + (10**12).to_bytes(8, 'little') + b'.', 'bytearray(2e9)': b'\x80\x02c__builtin__\nbytearray\n' + number(2*10**9) + b'\x85R.',
         'list(range(2e9))': b'\x80\x02c__builtin__\nlist\nc__builtin__\nrange\n' + number(2*10**9) + b'\x85R\x85R.', 'number of 400,000 digits': b'\x80\x02\x8b' + (200_000).to_bytes(4, 'little') + b'\x7f'*200_000 + b'.',
         'digits': b'L' + b'9'*500_000 + b'L\n.', 'copies of a set': b'\x80\x02' + SET + b'q\x000](' + b'K\x01'*100_000 + b'eq\x010]' + b'h\x00h\x01\x85Ra'*100_000 + b'.',
         'copies of text': b'\x80\x02c_codecs\nencode\nq\x000X' + (400_000).to_bytes(4, 'little') + b'x'*400_000 + b'q\x010X\x06\x00\x00\x00latin1q\x020]' + b'h\x00h\x01h\x02\x86Ra'*50_000 + b'.',
         'many marks': b'\x80\x02' + b'('*999_000 + b'.', 'many sets': b'\x80\x04' + b'\x8f'*999_000 + b'.', 'many dictionaries': b'\x80\x04' + b'}'*999_000 + b'.', 'thirty dimensions': ARRAY % (b'(' + number(100_000) + b'K\x01'*31 + b't' + DTYPE, b'](' + b'N'*100_000 + b'e'),
         'keys that are long tuples': b'\x80\x02}K\x01' + b'K\x02'*63 + b'(' + b'K\x01'*64 + b'tq\x000(' + b'h\x00N'*300_000 + b'u.', 'a dictionary of itself': b'\x80\x02}q\x00K\x01h\x00s.', 'state of a class': b'\x80\x02cnumpy\ndtype\n}b.',
         'state of a name': b'\x80\x02c_codecs\nencode\nN}X\x0c\x00\x00\x00__setstate__Ns\x86b.', 'array without content': ARRAY[:ARRAY.index(b'(K\x01%s')] + b'.'}
