"""What ComfyUI asks for the nodes."""

from pathlib import Path

from aiohttp import web
from comfy_api.latest import ComfyExtension, io

from ..comfy_bridge.messages import running_server
from . import NODES

ROOT = Path(__file__).parents[1]


class MultiTalkExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return list(NODES)


async def comfy_entrypoint() -> MultiTalkExtension:
    if (server := running_server()) is not None:
        serve_help(server.routes)
    return MultiTalkExtension()


def serve_help(routes: web.RouteTableDef) -> None:
    """The help pages in any language: the editor asks for docs/<Node>/<language>.md, and for docs/<Node>.md only after a 404."""
    pages = {page.stem: page for page in (ROOT / "web" / "docs").glob("*.md")}

    @routes.get(f"/extensions/{ROOT.name}/docs/{{node}}/{{language}}.md")
    async def help_page(request: web.Request) -> web.FileResponse:
        if page := pages.get(request.match_info["node"]):
            return web.FileResponse(page)
        raise web.HTTPNotFound
