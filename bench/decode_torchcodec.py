"""torchcodec's part of `bench/decode.py`, in an interpreter that has it: a clip whenever a line comes in."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from importlib import metadata

import numpy as np
import torch
from torchcodec.decoders import VideoDecoder

MARK = "@decode "


def main() -> None:
    torch.set_num_threads(1)
    versions = {name: metadata.version(name) for name in ("torchcodec", "torch")}
    print(MARK + json.dumps({"versions": versions}), flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        started, used = time.perf_counter(), time.process_time()
        decoder = VideoDecoder(
            job["path"],
            seek_mode=job["mode"],
            num_ffmpeg_threads=job["threads"],
            dimension_order="NHWC",
        )
        frames = decoder.get_frames_at(job["indices"]).data.numpy()
        seconds, used = time.perf_counter() - started, time.process_time() - used
        if job["save"]:
            np.save(job["save"], frames)
        shas = [hashlib.sha256(np.ascontiguousarray(frame).data).hexdigest() for frame in frames]
        print(MARK + json.dumps({"seconds": seconds, "cpu_s": used, "sha256": shas}), flush=True)


if __name__ == "__main__":
    main()
