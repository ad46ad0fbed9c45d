// Pictures of finished clips on the node MultiTalk Long Video, in an element of our own.
//
// While the editor holds a preview of a node, it plays that in place of the node's video, and when it lets go of previews differs
// between its versions (1.58 misses it where two messages arrive between two frames). So these nodes' previews are kept from it.

import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"

const NODE = "MultiTalkLongVideo"
const WIDGET = "clip_preview"
const HEIGHT = 220 // pixels, as the editor gives its own

/** The node that "12:5" names: number 5 inside of the subgraph node 12. */
export function nodeAt(path) {
    const [inner, ...outer] = String(path).split(":").reverse()
    const graph = outer.reduceRight((graph, id) => graph?.getNodeById(id)?.subgraph, app.rootGraph ?? app.graph)
    return graph?.getNodeById(inner)
}

function show(node, blob) {
    const shown = node.widgets.find((widget) => widget.name === WIDGET)?.element ?? add(node)
    URL.revokeObjectURL(shown.src)
    shown.src = URL.createObjectURL(blob)
}

function add(node) {
    const picture = Object.assign(document.createElement("img"), { className: "multitalk-clip", alt: "The last finished clip" })
    Object.assign(picture.style, { minHeight: `${HEIGHT}px`, objectFit: "contain", pointerEvents: "none" })
    node.addDOMWidget(WIDGET, "MULTITALK_CLIP_PREVIEW", picture, {
        hideInPanel: true, // there is one element only, and it belongs on the node
        hideOnZoom: false,
        getMinHeight: () => HEIGHT,
    }).serialize = false // not in the workflow
    return picture
}

function remove(node) {
    const widget = node.widgets.find((widget) => widget.name === WIDGET)
    if (!widget) return
    URL.revokeObjectURL(widget.element.src)
    node.removeWidget(widget)
}

/** What the editor hears of a preview: for nodes like ours, that there is one for the run, and for the subgraph that they are in. */
function divert(detail) {
    const node = nodeAt(detail.displayNodeId)
    if (node?.comfyClass !== NODE) return detail
    show(node, detail.blob)
    return { ...detail, displayNodeId: detail.displayNodeId.split(":").slice(0, -1).join(":") || "multitalk-clip" }
}

app.registerExtension({
    name: "MultiTalk.ClipPreview",

    init() {
        const dispatch = api.dispatchCustomEvent // the editor may have added its listener before ours
        api.dispatchCustomEvent = function (type, detail) {
            return dispatch.call(this, type, type === "b_preview_with_metadata" ? divert(detail) : detail)
        }
    },

    nodeCreated(node) {
        if (node.comfyClass !== NODE) return
        const { addDOMWidget, onExecuted } = node
        node.addDOMWidget = function (name, type, element, options) {
            // else the editor's own for the video is an input from the second run on, and ComfyUI makes everything anew
            return addDOMWidget.call(this, name, type, element, { ...options, serialize: false })
        }
        node.onExecuted = function (...values) {
            remove(node)
            return onExecuted?.apply(this, values)
        }
    },
})
