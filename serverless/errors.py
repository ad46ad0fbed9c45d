"""What ends a job without a video."""

from __future__ import annotations

from typing import Any


class JobError(Exception):
    """One sentence for whoever sent the job, and a code for their program.

    Attributes:
        code: what went wrong, in one word.
        details: more, as JSON can hold it; never a secret, never a stack trace.
    """

    def __init__(self, message: str, code: str, **details: Any) -> None:
        super().__init__(message)
        self.code, self.details = code, details

    def reply(self) -> dict[str, Any]:
        """The job's answer.

        RunPod marks a job as failed only if "error" is a text at its top, and some of its ways back keep nothing else; so the code is
        in there, too.
        """
        return {"status": "error", "error": f"{self.code}: {self}", "error_code": self.code, "error_details": self.details}
