"""The page and its server. Needs Gradio.

Files come in by Gradio's own paths and no others, and the page sends no path back.
"""

from __future__ import annotations

import fastapi
import gradio as gr
import uvicorn
from fastapi.middleware.trustedhost import TrustedHostMiddleware

from seem_jax.demo.picture_tab import picture_tab
from seem_jax.demo.studio import Studio
from seem_jax.demo.video_tab import video_tab
from seem_jax.demo.wiring import HERE

ADDRESS = "127.0.0.1"


def theme() -> gr.themes.Base:
    """Fonts of the system, since the page must not ask any other server for them."""
    return gr.themes.Soft(
        primary_hue="indigo",
        font=("system-ui", "sans-serif"),
        font_mono=("ui-monospace", "monospace"),
    )


def build(studio: Studio) -> gr.Blocks:
    """The page for a studio. Every event is private: it can be used from the page alone."""
    with gr.Blocks(
        title="seem_jax", analytics_enabled=False, delete_cache=(600, 3600), fill_width=True
    ) as page:
        gr.Markdown(
            "## Segment everything everywhere\n"
            "Open a picture and say what you mean: click, draw, write, or show it on another picture. "
            "Any mix is one question; correct the answer with more of them."
        )
        with gr.Tab("Picture"):
            reference = picture_tab(studio)
        with gr.Tab("Video"):
            video_tab(studio, reference)
    return page


def server(studio: Studio, port: int) -> uvicorn.Server:
    """The page as a server on 127.0.0.1; `run()` serves until it is interrupted.

    Built from Gradio's parts rather than with `launch`, which gives up where its first page takes three
    seconds, and can open a tunnel. Uploads are files to Gradio; only the studio decodes them, after
    it has looked at their headers.
    """
    site = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    # A page elsewhere may lead its name to this address; requests under such a name are refused.
    site.add_middleware(TrustedHostMiddleware, allowed_hosts=[ADDRESS, "localhost"])
    gr.mount_gradio_app(
        site,
        build(studio),
        path="",
        server_name=ADDRESS,
        server_port=port,
        show_error=False,
        ssr_mode=False,
        max_file_size=int(max(studio.limits.megabytes, studio.limits.video_megabytes) * 1e6),
        footer_links=[],
        theme=theme(),
        css=(HERE / "page.css").read_text(),
    )
    return uvicorn.Server(uvicorn.Config(site, host=ADDRESS, port=port, log_level="warning"))
