// What our nodes have to say, on the nodes: what they assumed while they run, and what they report when they are done.
//
// Notes come as a message of their own while a node runs (nodes/base.py), and with its result, where reports are, too. ComfyUI keeps
// results, so that a node that was not run again shows them as before.

import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"
import { nodeAt } from "./clip_preview.js"

const PACK = "MultiTalk"
const NOTES = "multitalk_notes" // nodes/base.py
const LINE = 16 // pixels
const LETTER = 7 // pixels, at most on the average
const MOST = 24 // lines; more are scrolled to
const ROOM = 16 // pixels for the frame

const TABLE = /\S {3,}\S/ // columns, made with spaces
const TABLE_WIDTH = 640 // pixels

const STYLE = `
.multitalk-notes { box-sizing: border-box; overflow: auto; padding: 6px 8px; border-radius: 6px; font: 12px/${LINE}px sans-serif;
    white-space: pre-wrap; overflow-wrap: anywhere; user-select: text; cursor: text; color: var(--fg-color);
    background: var(--comfy-input-bg); border: 1px solid var(--border-color); }
.multitalk-notes .table { white-space: pre; font-family: monospace; }
.multitalk-notes .note { border-left: 3px solid rgb(255, 159, 67); padding-left: 6px; margin-bottom: 4px; }
`

const isText = (text) => typeof text === "string" && text !== ""

/** Shows notes and reports on a node; nothing where there are none. */
function show(node, notes, reports) {
    const texts = [...notes, ...reports].filter(isText)
    const widget = node.widgets?.find((widget) => widget.name === NOTES) ?? (texts.length ? added(node) : undefined)
    if (!widget) return
    widget.element.replaceChildren(
        ...notes.filter(isText).map((text) => part("note", text)),
        ...reports.filter(isText).map((text) => part(TABLE.test(text) ? "table" : "report", text)),
    )
    widget.texts = texts
    widget.hidden = widget.options.hidden = !texts.length // the classic canvas looks at the first, Nodes 2.0 at the second
    if (texts.some((text) => TABLE.test(text))) node.setSize([Math.max(node.size[0], TABLE_WIDTH), node.size[1]])
    const [width, height] = node.computeSize()
    node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)])
    node.setDirtyCanvas?.(true, true)
}

function part(kind, text) {
    return Object.assign(document.createElement("div"), { className: kind, textContent: text })
}

function added(node) {
    const root = part("multitalk-notes", "")
    for (const event of ["pointerdown", "wheel"]) root.addEventListener(event, (event) => event.stopPropagation())
    const height = () => Math.min(MOST, lines(widget.texts ?? [], node.size[0])) * LINE + ROOM
    const widget = node.addDOMWidget(NOTES, "MULTITALK_NOTES", root, {
        serialize: false, // not in the API's prompt
        hideInPanel: true,
        getMinHeight: height,
        getMaxHeight: height,
        getValue: () => "",
        setValue: () => {},
    })
    widget.serialize = false // nor in the workflow
    return widget
}

function lines(texts, width) {
    const letters = Math.max(20, (width - 50) / LETTER)
    const rows = (line, wraps) => (wraps ? Math.max(1, Math.ceil(line.length / letters)) : 1)
    return texts.reduce((sum, text) => sum + text.split("\n").reduce((all, line) => all + rows(line, !TABLE.test(text)), 0), 0)
}

app.registerExtension({
    name: "MultiTalk.Notes",

    setup() {
        document.head.append(Object.assign(document.createElement("style"), { textContent: STYLE }))
        api.addEventListener(NOTES, ({ detail }) => {
            const node = nodeAt(detail.node)
            if (node) show(node, detail.notes, [])
        })
        // a node that runs without a word sends no result; one that is not run again keeps what it said
        api.addEventListener("executing", ({ detail }) => {
            const node = nodeAt(detail)
            if (node?.comfyClass?.startsWith(PACK)) show(node, [], [])
        })
    },

    nodeCreated(node) {
        if (!node.comfyClass?.startsWith(PACK)) return
        const { onExecuted } = node
        node.onExecuted = function (output) {
            const result = onExecuted?.apply(this, arguments)
            show(this, output?.[NOTES] ?? [], output?.text ?? [])
            return result
        }
    },
})
