"""What compressing kept features would save, and what it would cost.

Run by bench.py, in a process of its own; the arguments are weights and a folder of photographs.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from convert import measure

HERE = Path(__file__).parent
RUN = f"import sys; sys.path.insert(0, {str(HERE)!r}); from smaller_features import main; main()"
IMAGE_SIZE, PICTURES, REPEATS = 224, 24, 3
_Codec = tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]


def compressing(weights: str, photographs: Path) -> Iterator[dict[str, Any]]:
    """Yield what each way of compressing gives, for features in either precision."""
    found = measure(RUN, weights, photographs)
    for case in json.loads(found.output.splitlines()[-1]):
        yield {**case, "others_cores": found.others_cores}


def described(case: Mapping[str, Any]) -> str:
    """Return the figures of a case in words."""
    return (
        f"{case['times_smaller']} times smaller, {case['in_mb_per_s']} MB/s in,"
        f" {case['out_mb_per_s']} out; pays from disks below {case['pays_below_mb_per_s']} MB/s"
    )


def main() -> None:
    """Compress what conv5_1 gets of some photographs, each by itself; prints JSON."""
    import jax.numpy as jnp
    import numpy as np

    from vgg_jax.data.decode import decode_image, resize_image
    from vgg_jax.workflows.backbone import open_backbone

    weights, folder = sys.argv[1:]
    backbone = open_backbone(weights).backbone
    paths = sorted(Path(folder).rglob("*.jpg"))
    if not paths:
        sys.exit(f"There are no photographs (*.jpg) in {folder}.")
    features = []
    for path in paths[:: max(len(paths) // PICTURES, 1)][:PICTURES]:
        image = decode_image(path.read_bytes(), str(path))
        image = resize_image(image, IMAGE_SIZE, "bilinear")
        features.append(backbone.run(backbone.normalise(image[None]), stop="conv5_1")[0])
    cases = []
    for dtype in ("float32", "bfloat16"):
        rows = [np.asarray(each.astype(jnp.dtype(dtype))) for each in features]
        zeros = statistics.mean(float((row == 0).mean()) for row in rows)
        for name, codec in _codecs().items():
            figures = _measured(codec, [row.tobytes() for row in rows])
            cases.append({"who": f"{name}, {dtype}", "zeros": round(zeros, 2), **figures})
    print(json.dumps(cases))


def _codecs() -> dict[str, _Codec]:
    """Return ways to compress and to get back what was compressed."""
    import pyarrow  # a dependency of tensorflow-datasets

    found: dict[str, _Codec] = {"zlib 1": (lambda data: zlib.compress(data, 1), zlib.decompress)}
    for name, level in (("zstd", 1), ("lz4", None)):
        codec = pyarrow.Codec(name, compression_level=level)

        def compress(data: bytes, codec: Any = codec) -> bytes:
            return len(data).to_bytes(8, "little") + codec.compress(data, asbytes=True)

        def decompress(data: bytes, codec: Any = codec) -> bytes:
            size = int.from_bytes(data[:8], "little")
            return codec.decompress(memoryview(data)[8:], size, asbytes=True)

        found[f"{name} {level}" if level else name] = (compress, decompress)
    return found


def _measured(codec: _Codec, rows: list[bytes]) -> dict[str, float]:
    compress, decompress = codec
    seconds: dict[str, list[float]] = {"in": [], "out": []}
    size = sum(map(len, rows))
    smaller: list[bytes] = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        smaller = [compress(row) for row in rows]
        between = time.perf_counter()
        again = [decompress(row) for row in smaller]
        seconds["in"].append(between - begun)
        seconds["out"].append(time.perf_counter() - between)
        if again != rows:
            raise RuntimeError("A row did not come back as it was.")
    rates = {f"{way}_mb_per_s": round(size / min(times) / 1e6) for way, times in seconds.items()}
    share = sum(map(len, smaller)) / size
    # Reading less, then unpacking, on one thread, is faster than reading all on a disk this slow.
    pays = {"pays_below_mb_per_s": round(rates["out_mb_per_s"] * (1 - share))}
    return {"times_smaller": round(1 / share, 2), **rates, **pays}
