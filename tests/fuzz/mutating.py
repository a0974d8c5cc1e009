"""Mutations of files: of any bytes, and of what JSON, text, zip archives and safetensors hold. Standard library only."""

import io
import json
import random
import re
import struct
import zipfile

DEEP = "@@deep@@"  # stands for lists in each other that json cannot write
NASTY = (
    *(None, True, False, 0, 1, -1, 2, 3, 7.3, 40, -0.5, 0.5, 1e-308, -1e-308, 1e38, -1e38, 1e308, -1e308, 1e309),
    *(2**31, -(2**31), 2**53 + 1, 2**63 - 1, 2**63, -(2**63) - 1, 2**64, 10**30, 10**308, 10**400, float("nan"), float("-inf")),
    *("", "a", " ", "0", "nan", "\ud800", "\x1b[31m", "::error::x", "two\nlines", "\0", "\u2028", "<b>", "x" * 5000, "../../etc"),
    *([], {}, [[]], [None], [0], [1.0, 2.0], {"a": 1}, {"schema": 1}, [1] * 1000, [[0.5] * 4] * 4, [{}], DEEP, "SHOWN", "share"),
)
NUMBERS = (
    *(b"0", b"1", b"-1", b"7.3", b"40", b"1e308", b"-1e308", b"1e38", b"1e-320", b"nan", b"inf", b"-inf", b"", b"9" * 400),
    *(b"9223372036854775807", b"9223372036854775808", b"18446744073709551616", b"2147483648", b"0x10", b"1_000", b"1,000", b"1e"),
)
PIECES = (
    *(b"\0", b"\xff", b"\n", b"\r", b"\r\n", b"\xef\xbb\xbf", b"\xff\xfe", b"\x80", b"\xed\xa0\x80", b"{", b"}", b"[", b"]"),
    *(b'"', b",", b":", b"\\", b"\\ud800", b"NaN", b"Infinity", b"null", b"\x1b[2J", b"::error::", b"[" * 200, b'{"a":' * 200),
)
SIZES = (0, 1, 2, 7, 255, 256, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1)


def mutated(name, content, rng):
    """The content of a file with one to three mutations, of bytes or of what a file of this name holds."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        known = structured(name, content)
        change = rng.choice((*known, *known, of_bytes)) if known else of_bytes
        try:
            content = change(content, rng)
        except (ValueError, KeyError, IndexError, zipfile.BadZipFile, struct.error, RecursionError):
            content = of_bytes(content, rng)  # it is no longer what its name says
    return content


def structured(name, content):
    """The mutations that know what a file holds."""
    if name.endswith((".json", ".metadata.json")):
        return (of_json, of_text)
    if name.endswith(".jsonl"):
        return (of_json_line, of_lines)
    if name.endswith(".safetensors"):
        return (of_header, of_integers)
    if content[:4] == b"PK\x03\x04" or name == ".metadata":
        return (of_archive,) if name != ".metadata" else (of_pickle, of_integers)
    if b"\0" in content[:4096]:
        return (of_integers,)
    return (of_text, of_lines)


def of_bytes(content, rng):
    """A few bytes changed, put in, left out, repeated or cut off."""
    place = rng.randrange(len(content) + 1)
    length = rng.choice((1, 1, 2, 4, 16, 200))
    before, here, after = content[:place], content[place : place + length], content[place + length :]
    changes = (
        before,
        before + after,
        before + rng.choice(PIECES) + here + after,
        before + rng.randbytes(length) + after,
        before + here * rng.choice((2, 3, 50)) + after,
        before + bytes(each ^ 1 << rng.randrange(8) for each in here[:1]) + here[1:] + after,
        rng.choice((b"", content * 2, content[::-1], content[place:], b"\xef\xbb\xbf" + content)),
    )
    return rng.choice(changes)


def of_text(content, rng):
    """A number or a word of a text in place of another."""
    found = list(re.finditer(rb"-?\d[\d.eE+-]*|\w+", content))
    one = rng.choice(found)
    new = rng.choice(NUMBERS) if rng.random() < 0.6 else rng.choice([rng.choice(found)[0], *PIECES])
    return content[: one.start()] + new + content[one.end() :]


def of_lines(content, rng):
    """Lines in another order, twice, or fewer of them."""
    lines = content.splitlines(keepends=True)
    place, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    kind = rng.randrange(4)
    if kind == 0:
        del lines[place]
    elif kind == 1:
        lines.insert(other, lines[place])
    elif kind == 2:
        lines[place], lines[other] = lines[other], lines[place]
    else:
        lines = lines[:place]
    return b"".join(lines)


def of_integers(content, rng):
    """A number of four or eight bytes in place of what stands there."""
    form = rng.choice(("<I", "<Q", ">I", ">Q"))
    new = struct.pack(form, rng.choice(SIZES) % 2 ** (8 * struct.calcsize(form)))
    place = rng.randrange(min(len(content), rng.choice((64, 4096, 2**30))))
    return content[:place] + new + content[place + len(new) :]


def of_json(content, rng):
    """One value of a JSON text in place of another, left out, or put in."""
    return written(changed(json.loads(content), rng))


def of_json_line(content, rng):
    lines = content.splitlines()
    place = rng.randrange(len(lines))
    lines[place] = written(changed(json.loads(lines[place]), rng))
    return b"\n".join(lines) + b"\n"


def changed(data, rng):
    """The same JSON value with one part changed, any as likely as any other, but for numbers in long lists."""
    parts = list(_parts(data))
    if not parts:
        return rng.choice(NASTY)
    holder, key = rng.choice(parts)
    kind = rng.random()
    if kind < 0.7:
        holder[key] = rng.choice(NASTY)
    elif kind < 0.8:
        del holder[key]
    elif kind < 0.9:
        other, at = rng.choice(parts)
        holder[key] = other[at]  # of another kind, or from elsewhere; json writes it out
        if _is_within(holder, holder[key]):
            holder[key] = None
    elif isinstance(holder, dict):
        holder[rng.choice(("new", "schema", "kind", "value", "", "x" * 300))] = rng.choice(NASTY)
    else:
        holder.insert(key, rng.choice(NASTY))
    return data


def _parts(data, most=6):
    """Where every value stands: what holds it, and its key. Of a long list a few."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for place, (key, value) in enumerate(items):
        if isinstance(data, dict) or place < most:
            yield data, key
            yield from _parts(value)


def _is_within(holder, value):
    return value is holder or any(_is_within(holder, value[key]) for inside, key in _parts(value) if inside is value)


def written(data):
    """As JSON, also what json itself does not write."""
    text = json.dumps(data)
    return text.replace(f'"{DEEP}"', "[" * 100_000 + "]" * 100_000).encode("utf-8", "surrogatepass")


def of_header(content, rng):
    """What stands before the numbers of a safetensors file."""
    size = int.from_bytes(content[:8], "little")
    header = written(changed(json.loads(content[8 : 8 + size]), rng))
    length = len(header) if rng.random() < 0.8 else rng.choice(SIZES)
    return length.to_bytes(8, "little") + header + content[8 + size :]


def of_archive(content, rng):
    """One file in an archive, the archive as it should be around it."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(made, "w") as new:
        names = old.namelist()
        chosen = rng.choice([name for name in names if name.endswith(".pkl")] * 3 + names)
        for name in names:
            inside = old.read(name)
            if name == chosen:
                if rng.random() < 0.1:
                    continue
                pickled = (of_pickle,) if name.endswith(".pkl") else ()
                inside = rng.choice((*(of_bytes,) * 5, *(of_integers,) * 2, *pickled))(inside, rng)
            new.writestr(name, inside)
    return made.getvalue()


def of_pickle(content, rng):
    """At the end of a pickle a value that refers to one that refers to another, and so on, where it is gone through."""
    wide, deep = rng.choice((1, 2, 2, 2, 10)), rng.choice((5, 20, 40, 40, 200))
    again = b"j\xff\0\0\0" * wide
    tuples = b"(" * deep + b"K\x01\x85r\xff\0\0\0" + (again + b"tr\xff\0\0\0") * deep
    lists = b"](" * deep + b"]r\xff\0\0\0" + (again + b"er\xff\0\0\0") * deep
    uses = (
        b"}" + tuples + b"K\x01s",
        b"cbuiltins\nset\n]" + tuples + b"a\x85R",
        b"ccollections\nCounter\n]" + tuples + b"a\x85R",
        b"ctorch.torch_version\nTorchVersion\n" + lists + b"\x85R",
        b"(X\x07\0\0\0storagectorch\nFloatStorage\n" + lists + b"X\x03\0\0\0cpuK\x01tQ",
        lists,
        tuples,
    )
    return content[:-1] + rng.choice(uses) + content[-1:]


def words(rng, alphabet=""):
    """A text for an option, a name or a spec: pieces of known ones, and of what nobody writes."""
    known = (
        "hf:",
        "a",
        "b/c",
        ".",
        "..",
        "/",
        "~",
        ":",
        "@",
        "{}",
        ",",
        "=",
        "*",
        " ",
        "0",
        "1",
        "1e308",
        "-1",
        "nan",
        "inf",
        "4GB",
    )
    odd = (
        "\0",
        "\n",
        "\x1b[31m",
        "é",
        "\u2028",
        "\U0001f600",
        "[",
        "(",
        "\\",
        "%",
        "$",
        '"',
        "'",
        "x" * 300,
        "9" * 400,
        "\ud800",
    )
    return "".join(rng.choice((*known, *known, *odd, *alphabet)) for _ in range(rng.randrange(6)))


def numbered(seed, reader, number):
    """The source of chance of one input."""
    return random.Random(f"{seed}:{reader}:{number}")
