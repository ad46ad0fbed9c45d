"""What all nodes have in common: they say on the node what they assumed."""

import functools

from comfy_api.latest import io, ui

from ..comfy_bridge.messages import send
from ..multitalk_core.notes import NOTES, noting


class Node(io.ComfyNode):
    """A node of ComfyUI's whose notes reach the editor while it runs, and stand in its result, which ComfyUI keeps and sends again."""

    def __init_subclass__(cls):
        super().__init_subclass__()
        if "execute" in cls.__dict__ and not hasattr(cls.execute, "__wrapped__"):  # ComfyUI makes locked copies of nodes
            cls.execute = classmethod(_noted(cls.execute.__func__))


def _noted(execute):
    @functools.wraps(execute)
    def noted(cls, *given, **named):
        with noting(lambda notes: send(NOTES, {"notes": notes})) as notes:
            output = execute(cls, *given, **named)
        if notes:
            shown = output.ui if isinstance(output.ui, dict) or output.ui is None else output.ui.as_dict()
            output.ui = {**(shown or {}), NOTES: notes}
        return output

    return noted


def with_report(node, picture, report, *more):
    """A node's output of a picture and what is to be said of it; both are shown on the node."""
    shown = {**ui.PreviewImage(picture, cls=node).as_dict(), **ui.PreviewText(report).as_dict()}
    return io.NodeOutput(picture, report, *more, ui=shown)
