"""ICC profiles built from published primaries and curves, and the sRGB values that they mean, by formula."""

import struct

import numpy as np

D50, D65 = (0.3457, 0.3585), (0.3127, 0.3290)
ADOBE = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06))
DISPLAY_P3 = ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06))
PROPHOTO = ((0.734699, 0.265301), (0.159597, 0.840403), (0.036598, 0.000105))
SRGB = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def gamma(exponent):
    return lambda v: np.asarray(v, float) ** exponent


def srgb_curve(v):
    v = np.asarray(v, float)
    return np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)


# name: primaries, white, curve from a value in 0..1 to light
SPACES = {
    "Adobe RGB (1998)": (ADOBE, D65, gamma(563 / 256)),
    "Display P3": (DISPLAY_P3, D65, srgb_curve),
    "ProPhoto RGB": (PROPHOTO, D50, gamma(1.8)),
    "sRGB IEC61966-2.1": (SRGB, D65, srgb_curve),
}


def xyz(xy):
    return np.array([xy[0] / xy[1], 1.0, (1 - xy[0] - xy[1]) / xy[1]])


def to_d50(primaries, white):
    """The matrix from linear RGB to XYZ, adapted to D50 (Bradford)."""
    matrix, whites = np.stack([xyz(p) for p in primaries], 1), (xyz(white), xyz(D50))
    matrix = matrix * np.linalg.solve(matrix, whites[0])
    scale = np.diag(BRADFORD @ whites[1] / (BRADFORD @ whites[0]))
    return np.linalg.inv(BRADFORD) @ scale @ BRADFORD @ matrix


def encode_srgb(light):
    light = np.clip(light, 0, 1)
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055) * 255


def meaning(colour, space):
    """The sRGB levels, in 0..255 and not rounded, of a colour of a space."""
    primaries, white, curve = SPACES[space]
    light = to_d50(primaries, white) @ curve(np.array(colour) / 255)
    return encode_srgb(np.linalg.solve(to_d50(SRGB, D65), light))


def lab_meaning(lab):
    """The sRGB levels of a colour in L*a*b* under D50."""
    y = (lab[0] + 16) / 116
    f = np.array([y + lab[1] / 500, y, y - lab[2] / 200])
    light = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * xyz(D50)
    return encode_srgb(np.linalg.solve(to_d50(SRGB, D65), light))


def fixed(values):
    return b"".join(struct.pack(">i", round(float(v) * 65536)) for v in values)


def curve_tag(curve):
    table = np.round(curve(np.linspace(0, 1, 1024)) * 65535).astype(">u2").tobytes()
    return b"curv\0\0\0\0" + struct.pack(">I", 1024) + table


def xyz_tag(value):
    return b"XYZ \0\0\0\0" + fixed(value)


def build(space, tags, name, kind=b"mntr", pcs=b"XYZ "):
    text = name.encode("ascii") + b"\0"
    text = b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + b"\0" * 78
    tags = {b"desc": text, b"wtpt": xyz_tag(xyz(D50)), **tags}
    offset, table, body = 132 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for key, value in tags.items():
        value += b"\0" * (-len(value) % 4)
        table += key + struct.pack(">II", offset + len(body), len(value))
        body += value
    size = offset + len(body)
    head = struct.pack(">I4sI4s4s4s", size, b"\0\0\0\0", 0x02400000, kind, space, pcs) + b"\0" * 12 + b"acsp"
    return (head + b"\0" * 28 + fixed(xyz(D50))).ljust(128, b"\0") + table + body


def rgb_profile(space):
    primaries, white, curve = SPACES[space]
    columns = zip((b"rXYZ", b"gXYZ", b"bXYZ"), to_d50(primaries, white).T, strict=True)
    curves = dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve_tag(curve))
    return build(b"RGB ", {**{key: xyz_tag(column) for key, column in columns}, **curves}, space)


def grey_profile(curve, name="a grey"):
    return build(b"GRAY", {b"kTRC": curve_tag(curve)}, name)


def cmyk_profile(corner):
    """A CMYK profile whose L*a*b* at the 16 corners of the cube of inks is `corner(c, m, y, k)`."""
    ramp, corners = bytes(range(256)), b""
    for c, m, y, k in np.ndindex(2, 2, 2, 2):
        lightness, a, b = corner(c, m, y, k)
        corners += bytes([round(lightness * 255 / 100), round(a) + 128, round(b) + 128])
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + fixed(np.eye(3).ravel()) + ramp * 4 + corners + ramp * 3
    return build(b"CMYK", {b"A2B0": table, b"A2B1": table}, "an ink", kind=b"prtr", pcs=b"Lab ")
