"""People on a hard clip: frames per second of the top-down way, and the share of frames with a person box that have a pose."""

import itertools
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

import numpy as np
from paired import save

from ai_suite.video.frames import frames
from ai_suite.video.objects import ObjectDetector
from ai_suite.video.people import PeopleEstimator
from ai_suite.video.pose import found, video_pose

DEMO = Path(os.environ.get("AI_SUITE_DATA", "unset"), "action_videos/mmaction2/demo.mp4")


def people_stage(every: int = 5, runs: int = 3, **settings: float) -> dict:
    "Decoding excluded: median frames per second of PeopleEstimator over the whole clip, and its shares."
    shots = [(1000 * t, f) for _, t, f in frames(DEMO)]
    seconds, boxes = [], {}
    with ObjectDetector(["person"], 0.3) as detect:
        best = [max(np.asarray(detect(f).confidence), default=0.0) for _, f in shots]
    for least in (0.3, 0.5):
        boxes[least] = np.array(best) >= least
    for _ in range(runs):
        with PeopleEstimator(every, **settings) as look:
            look(shots[0][1])
        with PeopleEstimator(every, **settings) as look:
            began = time.perf_counter()
            rows = [look(f, t) for t, f in shots]
            seconds.append(time.perf_counter() - began)
    anyone = np.array([any(np.isfinite(p[0, 0]) for p, _ in row.values()) for row in rows])
    people = [len(row) for row in rows]
    rate = len(shots) / float(np.median(seconds))
    return {
        "note": f"demo.mp4, detector every {every} frames: {rate:.1f} frames/s with {np.mean(people):.1f} people a frame; "
                f"a pose in {anyone[boxes[0.3]].mean():.1%} of the frames with a person box of score .3, "
                f"in {anyone[boxes[0.5]].mean():.1%} of those with .5",
        "fps": rate,
        "people_per_frame": float(np.mean(people)),
        "share_boxes_03": float(anyone[boxes[0.3]].mean()),
        "share_boxes_05": float(anyone[boxes[0.5]].mean()),
        "frames": len(shots),
        "runs": runs,
    }


def plain_stage(min_confidence: float = 0.5) -> dict:
    "Video mode alone on the same clip: share of all frames with a pose, and of the first 200."
    there = found(video_pose(DEMO, min_confidence=min_confidence)["pose"])
    note = f"plain video mode on demo.mp4: a pose in {there.mean():.1%} of the frames, {there[:200].sum()} of the first 200"
    return {"share": float(there.mean()), "first_200": int(there[:200].sum()), "note": note}


def grid() -> dict:
    "All settings that were weighed; slow."
    return {f"every {k}, confidence {c}": people_stage(k, 1, min_confidence=c)
            for k, c in itertools.product((1, 3, 5, 10), (0.3, 0.4, 0.5))}


if __name__ == "__main__":
    if not DEMO.is_file():
        print("people: not run, set AI_SUITE_DATA to the folder that holds action_videos")
    else:
        save("people", {"several people": people_stage(), "one person": plain_stage()} | (grid() if "--grid" in sys.argv else {}))
