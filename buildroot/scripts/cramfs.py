#!/usr/bin/env python3
"""Packs a cramfs image that is executed in place.

usage: cramfs.py LIST IMAGE

LIST is in the language of the kernel's gen_init_cpio (dir, file, slink, nod;
folders before what they hold). Nothing is compressed: the pages of a file of a
page or more lie at page boundaries, one behind the other, and direct block
pointers name them (include/uapi/linux/cramfs_fs.h). That is what lets the kernel
map them, and so execute text, from where they lie in ROM. Equal inputs make
equal bytes. The image is read back and compared before it is written.
"""
import stat
import struct
import sys
import zlib

PAGE = 4096
MAGIC, SIGNATURE, NAME = 0x28CD3D45, b"Compressed ROMFS", b"pxvm"
FSID_VERSION_2, SORTED_DIRS, EXT_BLOCK_POINTERS = 0x1, 0x2, 0x800
UNCOMPRESSED, DIRECT = 1 << 31, 1 << 30
SUPER, INODE = 76, 12
FILE_MAX, IMAGE_MAX, NAME_MAX = 1 << 24, 1 << 28, 252


class Node:
    """A file of any kind; `data` is what it holds, or a folder's children by name."""

    def __init__(self, mode, uid, gid, data, device=0):
        self.mode, self.uid, self.gid, self.data, self.device = mode, uid, gid, data, device
        self.offset = self.size = 0

    def is_dir(self):
        return stat.S_ISDIR(self.mode)

    def same(self, other):
        """Whether nothing differs, in all that lies below either."""
        if (self.mode, self.uid, self.gid, self.device) != (other.mode, other.uid, other.gid, other.device):
            return False
        if not self.is_dir():
            return self.data == other.data
        names = sorted(self.data)
        return names == sorted(other.data) and all(self.data[n].same(other.data[n]) for n in names)


def refuse(why):
    sys.exit(f"error: cramfs: {why}")


def read_list(path):
    """The tree that the list describes."""
    root = Node(stat.S_IFDIR | 0o755, 0, 0, {})
    with open(path, encoding="ascii") as lines:
        for number, line in enumerate(lines, 1):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            try:
                name, node = read_line(words)
                *folders, last = name.strip("/").encode("ascii").split(b"/")
                at = root
                for folder in folders:
                    at = at.data[folder]
                at.data[last] = node
            except (ValueError, KeyError, TypeError) as e:
                refuse(f"{path}:{number}: cannot use {line.strip()!r}: {e!r}")
    return root


def read_line(words):
    kind, name, *rest = words
    if kind == "dir":
        mode, uid, gid = rest
        return name, Node(stat.S_IFDIR | int(mode, 8), int(uid), int(gid), {})
    if kind == "nod":
        mode, uid, gid, letter, major, minor = rest
        if not (int(major) < 256 and int(minor) < 256):
            raise ValueError("device numbers have 8 bits")
        type_ = {"c": stat.S_IFCHR, "b": stat.S_IFBLK}[letter]
        return name, Node(type_ | int(mode, 8), int(uid), int(gid), b"", int(major) << 8 | int(minor))
    what, mode, uid, gid = rest
    if kind == "slink":
        return name, Node(stat.S_IFLNK | int(mode, 8), int(uid), int(gid), what.encode("ascii"))
    if kind == "file":
        with open(what, "rb") as f:
            data = f.read(FILE_MAX)
        return name, Node(stat.S_IFREG | int(mode, 8), int(uid), int(gid), data)
    raise ValueError("not one of dir, file, slink, nod")


def walk(root):
    """All nodes, folder by folder, each folder's sorted by name; the root first."""
    nodes = [root]
    for node in nodes:
        if node.is_dir():
            nodes += [node.data[name] for name in sorted(node.data)]
    return nodes


def up(n, to):
    return -(-n // to) * to


def entry_size(name):
    return INODE + up(len(name), 4)


def inode(node, name):
    size = node.device if stat.S_IFMT(node.mode) in (stat.S_IFCHR, stat.S_IFBLK) else node.size
    if not (node.uid < 1 << 16 and node.gid < 1 << 8 and size < FILE_MAX and node.offset < IMAGE_MAX):
        refuse(f"{name!r} does not fit the format")
    return struct.pack(
        "<III", node.mode | node.uid << 16, size | node.gid << 24, up(len(name), 4) // 4 | node.offset >> 2 << 6
    )


def pack(root):
    nodes = walk(root)
    # Folders first, then the tables of block pointers with small files behind theirs, then pages.
    end = SUPER
    for node in filter(Node.is_dir, nodes):
        node.size = sum(entry_size(name) for name in node.data)
        node.offset, end = (end, end + node.size) if node.size else (0, end)
    pieces, paged = [], []
    blocks = 0
    for node in nodes:
        if node.is_dir() or not node.data:
            continue
        node.size, node.offset = len(node.data), end
        count = up(node.size, PAGE) // PAGE
        blocks += count
        end += 4 * count
        if count > 1:
            paged.append(node)
            continue
        pieces.append((node.offset, pointers(end, node.size) + node.data))
        end = up(end + node.size, 4)
    for node in paged:
        at = up(end, PAGE)
        pieces += [(node.offset, pointers(at, node.size)), (at, node.data)]
        end = at + node.size
    image = bytearray(up(end, PAGE))
    if len(image) > IMAGE_MAX:
        refuse("the files are too large for the format")
    for at, piece in pieces:
        image[at : at + len(piece)] = piece
    for node in filter(Node.is_dir, nodes):
        at = node.offset
        for name in sorted(node.data):
            if not 0 < len(name) <= NAME_MAX:
                refuse(f"a name of {len(name)} bytes")
            entry = inode(node.data[name], name) + name
            image[at : at + len(entry)] = entry
            at += entry_size(name)
    flags = FSID_VERSION_2 | SORTED_DIRS | EXT_BLOCK_POINTERS
    head = struct.pack("<IIII16s", MAGIC, len(image), flags, 0, SIGNATURE)
    image[:SUPER] = head + struct.pack("<IIII16s", 0, 0, blocks, len(nodes), NAME) + inode(root, b"")
    struct.pack_into("<I", image, len(head), zlib.crc32(image))
    return bytes(image)


def pointers(at, size):
    """Where a file's blocks are, if they lie one behind the other from `at`."""
    count = up(size, PAGE) // PAGE
    table = [(at + PAGE * i) >> 2 | DIRECT | UNCOMPRESSED for i in range(count)]
    if size % PAGE == 0:
        # The kernel takes a last direct block to be as long as what is left of the size after
        # whole pages: nothing. A pointer to its end, behind the block before it or behind the
        # table, is read right, and costs no more than this page being mapped.
        table[-1] = (at + size) | UNCOMPRESSED
    return struct.pack(f"<{count}I", *table)


def unpack(image):
    """The tree in an image, read as the kernel does."""
    magic, size, flags, _, signature = struct.unpack_from("<IIII16s", image)
    assert (magic, size, signature) == (MAGIC, len(image), SIGNATURE), "superblock"
    assert flags & ~(FSID_VERSION_2 | SORTED_DIRS) == EXT_BLOCK_POINTERS, "flags"
    node, _ = read_inode(image, SUPER - INODE)
    return node


def read_inode(image, at):
    a, b, c = struct.unpack_from("<III", image, at)
    mode, uid, size, gid = a & 0xFFFF, a >> 16, b & 0xFFFFFF, b >> 24
    name_size, offset = (c & 0x3F) * 4, c >> 6 << 2
    node = Node(mode, uid, gid, b"")
    if stat.S_ISDIR(mode):
        node.data, here = {}, offset
        while here < offset + size:
            child, name = read_inode(image, here)
            assert all(other < name for other in node.data), "order of names"
            node.data[name] = child
            here += entry_size(name)
    elif stat.S_ISREG(mode) or stat.S_ISLNK(mode):
        node.data = b"".join(read_block(image, offset, size, i) for i in range(up(size, PAGE) // PAGE))
    else:
        node.device = size
    return node, image[at + INODE : at + INODE + name_size].rstrip(b"\0")


def read_block(image, table, size, index):
    last = up(size, PAGE) // PAGE - 1
    pointer = struct.unpack_from("<I", image, table + 4 * index)[0]
    assert pointer & UNCOMPRESSED, "a compressed block"
    if pointer & DIRECT:
        start = (pointer & ~(DIRECT | UNCOMPRESSED)) << 2
        length = size % PAGE if index == last else PAGE
    else:
        start = table + 4 * (last + 1)
        if index:
            before = struct.unpack_from("<I", image, table + 4 * index - 4)[0]
            assert before & DIRECT, "a block behind one that is not direct"
            start = ((before & ~(DIRECT | UNCOMPRESSED)) << 2) + PAGE
        length = (pointer & ~UNCOMPRESSED) - start
    return image[start : start + length]


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    root = read_list(sys.argv[1])
    image = pack(root)
    if not unpack(image).same(root):
        refuse("what was packed does not read as it was")
    with open(sys.argv[2], "wb") as f:
        f.write(image)


if __name__ == "__main__":
    main()
