"""What a study has taken of its devices, over all sessions and all tries of its trials."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from study import store
from study.files import whole_file


class DeviceTime:
    """Counts device-seconds once, wherever a session or a try was cut off.

    `earlier.json` holds, by trial that an earlier session or try has begun, what that has taken, and when it
    began; with the `end` of the trial's row, once that counts it, and the `lost_s` that the row then has.
    """

    def __init__(self, out: Path) -> None:
        self._out, self._file = out, out / "earlier.json"
        self._earlier = _read(self._file)
        self.total_s = sum(map(_taken_s, self._earlier.values()))
        """Of all trials, with what was lost."""

    def ended(self, row: Mapping[str, Any]) -> bool:
        """Count what a trial has taken, and an earlier try of it unless this one has gone on from that.

        Returns:
            Whether the row has been told of the earlier try just now.
        """
        name, end = row["trial_id"], row["finished_at"].isoformat()
        earlier = self._earlier.get(name)
        if earlier is None:
            self.total_s += _taken_s(row)
            return False
        if earlier.get("end") != end:
            goes_on = earlier["started_at"] == row["started_at"].isoformat()
            carried = earlier["lost_s"] + (0.0 if goes_on else earlier["device_s"])
            earlier |= {"end": end, "row_lost_s": (row["lost_s"] or 0.0) + carried}
            self._write()  # before the row, so that whatever is cut off, it is told once
        is_told = earlier["row_lost_s"] == (row["lost_s"] or 0.0)
        if not is_told:
            store.write_lost(self._out, name, earlier["row_lost_s"])
        self.total_s += row["device_s"] + earlier["row_lost_s"] - earlier["device_s"] - earlier["lost_s"]
        return not is_told

    def begun(self, trial_id: str, device_s: float, started_at: str) -> None:
        """Count what an interrupted session has trained of a trial, by its last checkpoint."""
        before = self._earlier.get(trial_id, {"device_s": 0.0, "lost_s": 0.0, "started_at": ""})
        goes_on = before["started_at"] == started_at
        lost_s = before["lost_s"] + (0.0 if goes_on else before["device_s"])
        taken = {"device_s": device_s, "started_at": started_at, "lost_s": lost_s}
        self.total_s += _taken_s(taken) - _taken_s(before)
        self._earlier[trial_id] = taken
        self._write()

    def retried(self, row: Mapping[str, Any], safe_s: float) -> None:
        """Keep what an ended try has taken, whose row goes; `safe_s` of it led to its last checkpoint."""
        self._earlier[row["trial_id"]] = {
            "device_s": safe_s,
            "lost_s": _taken_s(row) - safe_s,
            "started_at": row["started_at"].isoformat(),
            "end": row["finished_at"].isoformat(),
            "row_lost_s": row["lost_s"] or 0.0,
        }
        self._write()

    def _write(self) -> None:
        with whole_file(self._file) as temporary:
            temporary.write_text(json.dumps(self._earlier), encoding="utf-8")


def _read(file: Path) -> dict[str, Any]:
    """What was written there; nothing, if that is not there or damaged: it is about costs alone."""
    try:
        return {
            str(name): dict(taken) for name, taken in json.loads(file.read_text(encoding="utf-8")).items()
        }
    except (FileNotFoundError, ValueError, TypeError, AttributeError):
        return {}


def _taken_s(row: Mapping[str, Any]) -> float:
    return float(row["device_s"] + (row["lost_s"] or 0))
