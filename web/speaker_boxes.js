// The widget of the node MultiTalk Speaker Boxes: draw a box over every face, and say whose it is.
//
// Everything that is drawn lives in the node's STRING input "boxes", which is hidden here (nodes/speakers.py reads it, and so can an
// API user write it): a list of {"box": [left, top, right, bottom], "name": "Anna", "speaker": 1, "silent": true}, all but the box
// optional. Edges are shares of the picture, from 0 to 1; those written by hand may be in pixels.

import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"

const NODE = "MultiTalkSpeakerBoxes"
const COLOURS = ["rgb(79, 163, 255)", "rgb(255, 159, 67)", "rgb(84, 199, 123)", "rgb(214, 107, 229)"] // multitalk_core/pictures/people.py
const GREY = "rgb(120, 120, 120)"
const UNDEALT = "rgb(235, 235, 235)"
const DARK = "rgb(30, 30, 34)"
const LEAST = 0.02 // share of the picture's side that a box must have
const SNAP = 0.012 // share of the side within which an edge sticks to the picture's edge
const REACH = 8 // pixels of the screen within which an edge is meant
const MARGIN = 7 // pixels around the picture, so that handles at its edges can be seen and grabbed
const SHARPNESS = 2 // drawn larger than shown, so that zooming in stays crisp
const LOOK = 250 // ms between looks at what the widget shows
const HOPS = 50 // reroutes in a row

const leftBehind = new Map() // the widgets of removed nodes, by the nodes' numbers

const STYLE = `
.multitalk-boxes { display: flex; flex-direction: column; gap: 6px; min-height: 250px; box-sizing: border-box; font: 12px sans-serif; }
.multitalk-boxes .stage { position: relative; flex: 1 1 0; min-height: 200px; overflow: hidden; border-radius: 6px;
    background: var(--comfy-input-bg); border: 1px solid var(--border-color); }
.multitalk-boxes canvas { position: absolute; inset: 0; width: 100%; height: 100%; outline: none; touch-action: none; }
.multitalk-boxes .stage:focus-within { border-color: var(--fg-color); }
.multitalk-boxes .note { position: absolute; left: 50%; bottom: 10px; transform: translateX(-50%); width: max-content; max-width: 90%;
    padding: 3px 8px; border-radius: 6px; pointer-events: none; text-align: center; color: var(--fg-color);
    background: var(--comfy-menu-bg); opacity: 0.92; }
.multitalk-boxes .note:empty, .multitalk-boxes [hidden] { display: none; }
.multitalk-boxes .row { display: flex; gap: 6px; flex: none; }
.multitalk-boxes .row > * { box-sizing: border-box; height: 26px; min-width: 0; padding: 2px 6px; font: inherit; border-radius: 6px;
    color: var(--fg-color); background: var(--comfy-input-bg); border: 1px solid var(--border-color); }
.multitalk-boxes .row > :disabled { opacity: 0.5; }
.multitalk-boxes .row > button { cursor: pointer; white-space: nowrap; }
.multitalk-boxes .row > input { flex: 1 1 60px; }
`

/** What the state says: its places, or why it cannot be read. */
function parse(text) {
    if (!text.trim()) return { places: [], error: "" }
    let places = null
    try {
        places = JSON.parse(text)
    } catch {
        // reported below, as what is no list
    }
    const wrong = Array.isArray(places) ? places.findIndex((place) => !isPlace(place)) : 0
    if (wrong < 0) return { places, error: "" }
    const what = Array.isArray(places) ? `Box ${wrong + 1} is not four numbers.` : "The text of the boxes is no JSON list."
    return { places: [], error: `${what} It stays as it is until you draw.` }
}

function isPlace(place) {
    return Array.isArray(place?.box) && place.box.length === 4 && place.box.every(Number.isFinite)
}

/** A place's box in shares of the picture; null where it is in pixels of a picture that is not known. */
function shares(place, picture) {
    let box = place.box
    if (!box.every((edge) => edge >= 0 && edge <= 1)) {
        if (!picture) return null
        box = box.map((edge, i) => edge / (i % 2 ? picture.naturalHeight : picture.naturalWidth))
    }
    return upright(box.map(within))
}

function within(edge) {
    return Math.min(1, Math.max(0, edge))
}

function upright([x0, y0, x1, y1]) {
    return [Math.min(x0, x1), Math.min(y0, y1), Math.max(x0, x1), Math.max(y0, y1)]
}

/** Whose a place is: a speaker's number, 0 for somebody silent, null for whoever the node finds by name or by order. */
function owner(place) {
    return place.silent ? 0 : place.speaker || null
}

function colourOf(place) {
    return owner(place) === null ? UNDEALT : (COLOURS[owner(place) - 1] ?? GREY)
}

function label(place) {
    const name = place.name || ""
    if (owner(place) === 0) return name ? `${name} (silent)` : "silent"
    if (owner(place) === null) return name || "by order"
    return name ? `${owner(place)} · ${name}` : `${owner(place)}`
}

/** The edges of a box that a point is at, as [0, 2 or null; 1, 3 or null]; no edge at all is its middle; null is outside. */
function edgesAt(box, [x, y], [reachX, reachY]) {
    if (x < box[0] - reachX || x > box[2] + reachX || y < box[1] - reachY || y > box[3] + reachY) return null
    return [nearEdge(x, box, 0, 2, reachX), nearEdge(y, box, 1, 3, reachY)]
}

function nearEdge(at, box, low, high, reach) {
    const edge = Math.abs(at - box[low]) <= Math.abs(at - box[high]) ? low : high
    const inside = at > box[low] && at < box[high] // where a small box must leave room to be moved
    return Math.abs(at - box[edge]) <= (inside ? Math.min(reach, (box[high] - box[low]) / 4) : reach) ? edge : null
}

/** The box of a drag that has come to a point. */
function dragged({ box, edges, from }, to) {
    const result = [...box]
    for (const axis of [0, 1]) {
        const shift = to[axis] - from[axis]
        if (edges[0] === null && edges[1] === null) {
            const size = box[axis + 2] - box[axis]
            const low = Math.min(within(box[axis] + shift), 1 - size)
            result[axis] = low < SNAP ? 0 : low + size > 1 - SNAP ? 1 - size : low
            result[axis + 2] = result[axis] + size
        } else if (edges[axis] !== null) {
            const edge = box[edges[axis]] + shift
            result[edges[axis]] = edge < SNAP ? 0 : edge > 1 - SNAP ? 1 : edge
        }
    }
    return upright(result).map((edge) => Math.round(edge * 1e4) / 1e4)
}

function cursor(edges) {
    if (!edges) return "crosshair"
    const [x, y] = edges
    if (x !== null && y !== null) return (x === 0) === (y === 1) ? "nwse-resize" : "nesw-resize"
    return x !== null ? "ew-resize" : y !== null ? "ns-resize" : "move"
}

function viewUrl(filename, subfolder, type) {
    return api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`)
}

/** Where the node's picture comes from: a key that changes with it, and its address if it is a file that was chosen. */
function sourceOf(node) {
    const slot = node.findInputSlot("image")
    let origin = node.getInputNode(slot)
    for (let hops = 0; origin?.type === "Reroute" && hops < HOPS; hops++) origin = origin.getInputNode(0)
    if (!origin) return { key: String(node.inputs[slot]?.link ?? ""), url: null } // nothing, or from outside of a subgraph
    const file = origin.widgets?.find((widget) => widget.name === "image")?.value
    const key = `${origin.id}:${file}`
    if (typeof file !== "string" || !file) return { key, url: null }
    const [, path, type] = file.match(/^(.*?)(?: \[(input|output|temp)\])?$/)
    const cut = path.lastIndexOf("/")
    return { key, url: viewUrl(path.slice(cut + 1), path.slice(0, Math.max(0, cut)), type ?? "input") }
}

function element(tag, properties, ...children) {
    const made = Object.assign(document.createElement(tag), properties)
    made.append(...children)
    return made
}

class BoxEditor {
    constructor(node) {
        this.node = node
        this.state = node.widgets.find((widget) => widget.name === "boxes")
        this.text = null // the state as it was read last
        this.places = []
        this.error = ""
        this.found = [] // what the last run used
        this.selected = -1
        this.drag = null
        this.source = null
        this.picture = null
        this.#build()
        this.#listen()
        new ResizeObserver(() => this.draw()).observe(this.stage)
    }

    #build() {
        this.canvas = element("canvas", { tabIndex: 0, ariaLabel: "Speaker boxes: drag over each face" })
        this.note = element("div", { className: "note" })
        this.stage = element("div", { className: "stage" }, this.canvas, this.note)
        this.name = element("input", { type: "text", placeholder: "name", title: "What messages and pictures call this person" })
        const options = ["by order", ...COLOURS.map((_, i) => `speaker ${i + 1}`), "silent"]
        this.who = element("select", { title: "Whose face this is; by order: from left to right" })
        this.who.append(...options.map((text) => element("option", { value: text, textContent: text })))
        this.remove = element("button", { type: "button", textContent: "Delete", title: "Remove the box (Delete key)" })
        this.take = element("button", { type: "button", textContent: "Take over", title: "Make the dashed boxes yours, to change them" })
        this.root = element("div", { className: "multitalk-boxes" }, this.stage)
        this.root.append(element("div", { className: "row" }, this.name, this.who, this.remove, this.take))
    }

    #listen() {
        this.canvas.addEventListener("pointerdown", (event) => this.press(event))
        this.canvas.addEventListener("pointermove", (event) => this.pull(event))
        for (const end of ["pointerup", "pointercancel"]) this.canvas.addEventListener(end, (event) => this.release(event))
        this.canvas.addEventListener("contextmenu", (event) => event.preventDefault())
        this.canvas.addEventListener("wheel", (event) => this.zoom(event))
        this.name.addEventListener("input", () => this.change((place) => (place.name = this.name.value), false))
        this.name.addEventListener("change", () => this.change((place) => (place.name = this.name.value)))
        this.who.addEventListener("change", () => this.change((place) => this.assign(place)))
        this.remove.addEventListener("click", () => this.delete())
        this.take.addEventListener("click", () => this.takeOver())
        // the editor must not move the node, open its menu or take its shortcuts meanwhile
        for (const kind of ["pointerdown", "pointermove", "pointerup", "contextmenu"])
            this.root.addEventListener(kind, (event) => event.stopPropagation())
        this.root.addEventListener("keydown", (event) => this.key(event))
    }

    // -- what is shown

    /** Looked at again and again: the state and the picture change in more ways than the editor has events for. */
    look() {
        if (!this.root.isConnected) this.moveIn()
        if (!this.root.isConnected || this.drag) return
        if (this.state.value !== this.text) this.read()
        const source = sourceOf(this.node)
        if (source.key === this.source?.key) return
        const first = !this.source
        this.source = source
        this.found = []
        this.show(source.url)
        if (first && !source.url) this.ran(app.nodeOutputs?.[this.node.id]) // Ctrl+Z makes all nodes anew
    }

    /** Nodes 2.0 goes on showing the widget of a node that was made anew under its old number, as by Ctrl+Z or a reload. */
    moveIn() {
        const old = leftBehind.get(this.node.id)
        if (old?.isConnected) old.replaceWith(this.root)
    }

    read() {
        this.text = this.state.value
        Object.assign(this, parse(String(this.text ?? "")))
        this.selected = -1
        this.update()
    }

    show(url) {
        const picture = url ? new Image() : null
        this.loading = picture
        const shown = (loaded) => {
            if (this.loading !== picture) return // a later one has come between
            this.picture = loaded
            this.update()
        }
        if (!picture) return shown(null)
        picture.onload = () => shown(picture)
        picture.onerror = () => shown(null)
        picture.src = url
    }

    /** After a run: the picture that the node saw, and the boxes that it used. */
    ran(output) {
        if (!output?.multitalk_picture) return
        this.source = sourceOf(this.node)
        this.found = parse(output.multitalk_boxes[0]).places
        this.show(viewUrl(...output.multitalk_picture))
    }

    get suggested() {
        return this.places.length || this.error ? [] : this.found
    }

    update() {
        const place = this.places[this.selected]
        for (const control of [this.name, this.who, this.remove]) control.disabled = !place
        if (document.activeElement !== this.name || !place) this.name.value = place?.name ?? ""
        this.who.value = place?.silent ? "silent" : place?.speaker ? `speaker ${place.speaker}` : "by order"
        this.take.hidden = !this.suggested.length
        this.note.textContent = this.hint()
        this.draw()
    }

    hint() {
        if (this.error) return this.error
        if (this.places.some((place) => !shares(place, this.picture)))
            return "Boxes in pixels are shown once the picture is known: connect one, or run."
        if (this.places.length) return ""
        if (this.suggested.length) return "Dashed: what the last run used."
        if (this.picture) return "Drag over each face."
        return this.source?.key ? "The picture comes with a run. Then drag over each face." : "Connect a picture, then drag over each face."
    }

    // -- drawing

    /** Where the picture is on the canvas, as large as fits. */
    area() {
        const [width, height] = [this.canvas.clientWidth - 2 * MARGIN, this.canvas.clientHeight - 2 * MARGIN]
        if (!this.picture) return { x: MARGIN, y: MARGIN, width, height }
        const { naturalWidth, naturalHeight } = this.picture
        const scale = Math.min(width / naturalWidth, height / naturalHeight)
        const [w, h] = [naturalWidth * scale, naturalHeight * scale]
        return { x: MARGIN + (width - w) / 2, y: MARGIN + (height - h) / 2, width: w, height: h }
    }

    draw() {
        const { clientWidth, clientHeight } = this.canvas
        const area = this.area()
        if (area.width <= 0 || area.height <= 0) return
        this.canvas.width = clientWidth * SHARPNESS
        this.canvas.height = clientHeight * SHARPNESS
        const pen = this.canvas.getContext("2d")
        pen.scale(SHARPNESS, SHARPNESS)
        if (this.picture) pen.drawImage(this.picture, area.x, area.y, area.width, area.height)
        this.drawPlaces(pen, area, this.suggested, true)
        this.drawPlaces(pen, area, this.places, false)
    }

    drawPlaces(pen, area, places, dashed) {
        places.forEach((place, i) => {
            const box = shares(place, this.picture)
            if (!box) return
            const [x, y] = [area.x + box[0] * area.width, area.y + box[1] * area.height]
            const rect = [x, y, (box[2] - box[0]) * area.width, (box[3] - box[1]) * area.height]
            const colour = colourOf(place)
            drawBox(pen, rect, colour, dashed, i === this.selected)
            drawLabel(pen, rect, colour, label(place))
        })
    }

    // -- the mouse

    /** Where the pointer is, in shares of the picture, and how far it reaches; the editor scales its nodes. */
    at(event) {
        const rect = this.canvas.getBoundingClientRect()
        const zoom = rect.width / this.canvas.clientWidth
        const area = this.area()
        const [x, y] = [(event.clientX - rect.left) / zoom - area.x, (event.clientY - rect.top) / zoom - area.y]
        return { point: [x / area.width, y / area.height], reach: [REACH / zoom / area.width, REACH / zoom / area.height] }
    }

    /** The box under the pointer: the selected one's edges first, then smaller before larger ones. */
    hit({ point, reach }) {
        const size = ({ box }) => (box[2] - box[0]) * (box[3] - box[1])
        const hits = this.places
            .map((place, index) => ({ index, box: shares(place, this.picture) }))
            .filter(({ box }) => box)
            .map((hit) => ({ ...hit, edges: edgesAt(hit.box, point, reach) }))
            .filter(({ edges }) => edges)
            .sort((a, b) => size(a) - size(b))
        const grabbed = hits.find(({ index, edges }) => index === this.selected && edges.some((edge) => edge !== null))
        return grabbed ?? hits[0]
    }

    press(event) {
        if (event.button === 1) app.canvas.processMouseDown(event) // the middle button moves the whole graph, here too
        if (event.button !== 0) return
        this.canvas.focus({ preventScroll: true }) // first: a name that is being typed still belongs to the selected box
        this.canvas.setPointerCapture(event.pointerId)
        this.look()
        const where = this.at(event)
        const hit = this.hit(where)
        const corner = where.point.map(within)
        this.selected = hit ? hit.index : -1
        this.drag = { from: where.point, box: hit?.box ?? [...corner, ...corner], edges: hit?.edges ?? [2, 3], drawn: Boolean(hit) }
        this.update()
    }

    pull(event) {
        if (event.buttons & 4) app.canvas.processMouseMove(event)
        const where = this.at(event)
        if (!this.drag) return (this.canvas.style.cursor = cursor(this.hit(where)?.edges))
        const { drag } = this
        const far = where.point.some((at, axis) => Math.abs(at - drag.from[axis]) > where.reach[axis] / 3)
        if (!drag.moved && !far) return // a click
        const box = dragged(drag, where.point)
        if (box[2] - box[0] < LEAST || box[3] - box[1] < LEAST) return
        if (!drag.drawn) this.selected = this.places.push({ box }) - 1
        this.places[this.selected].box = box
        drag.drawn = drag.moved = true
        this.update()
    }

    release(event) {
        if (event.button === 1) app.canvas.processMouseUp(event)
        const moved = this.drag?.moved
        this.drag = null
        if (moved) this.save()
    }

    zoom(event) {
        event.preventDefault()
        event.stopPropagation()
        app.canvas.processMouseWheel(event)
    }

    // -- changes

    key(event) {
        const deletes = event.target === this.canvas && ["Delete", "Backspace"].includes(event.key)
        if (deletes) this.delete()
        const typing = event.target !== this.canvas && !event.ctrlKey && !event.metaKey
        if (deletes || typing) event.stopPropagation() // the editor would delete the node, or take letters for shortcuts
        if (event.target === this.name && event.key === "Enter") this.canvas.focus({ preventScroll: true })
    }

    change(edit, whole = true) {
        const place = this.places[this.selected]
        if (!place) return
        edit(place)
        if (!place.name) delete place.name
        this.save(whole)
    }

    assign(place) {
        delete place.speaker
        delete place.silent
        const choice = this.who.selectedIndex // by order, speakers, silent
        if (choice > COLOURS.length) place.silent = true
        else if (choice) place.speaker = choice
    }

    delete() {
        if (!this.places[this.selected]) return
        this.places.splice(this.selected, 1)
        this.selected = -1
        this.canvas.focus({ preventScroll: true }) // else the Delete key would go to the node next
        this.save()
    }

    takeOver() {
        this.places = structuredClone(this.found)
        this.save()
    }

    /** Writes the state; as a whole step, it is one that the editor's Ctrl+Z takes back. */
    save(whole = true) {
        if (whole) app.canvas.emitBeforeChange()
        this.error = ""
        this.text = this.places.length ? JSON.stringify(this.places) : ""
        this.state.value = this.text
        this.update()
        if (whole) app.canvas.emitAfterChange()
    }
}

function drawBox(pen, [x, y, width, height], colour, dashed, selected) {
    pen.save()
    pen.fillStyle = colour
    pen.globalAlpha = selected ? 0.25 : 0.12
    pen.fillRect(x, y, width, height)
    const line = selected ? 3 : 2
    // a dark rim, or dark gaps, show on pictures of the same colour
    Object.assign(pen, { strokeStyle: DARK, lineWidth: dashed ? line : line + 2, globalAlpha: 0.6 })
    pen.strokeRect(x, y, width, height)
    Object.assign(pen, { strokeStyle: colour, lineWidth: line, globalAlpha: 1 })
    if (dashed) pen.setLineDash([6, 4])
    pen.strokeRect(x, y, width, height)
    if (selected) drawHandles(pen, [x, y, width, height])
    pen.restore()
}

function drawHandles(pen, [x, y, width, height]) {
    Object.assign(pen, { fillStyle: "white", lineWidth: 1.5 })
    for (const [i, j] of [[0, 0], [0.5, 0], [1, 0], [0, 0.5], [1, 0.5], [0, 1], [0.5, 1], [1, 1]]) {
        const handle = [x + i * width - 4, y + j * height - 4, 8, 8]
        pen.fillRect(...handle)
        pen.strokeRect(...handle)
    }
}

/** At the upper left, inside of the box. */
function drawLabel(pen, [x, y, width], colour, text) {
    pen.font = "bold 12px sans-serif"
    pen.textBaseline = "middle"
    const room = Math.max(12, Math.min(width - 8, pen.measureText(text).width))
    pen.fillStyle = colour
    pen.fillRect(x, y, room + 8, 18)
    pen.fillStyle = colour === GREY ? "white" : DARK
    pen.fillText(text, x + 4, y + 10, room)
}

/** A method of one node, with something more at its end. */
function after(node, method, more) {
    const before = node[method]
    node[method] = function (...values) {
        const result = before?.apply(this, values)
        more(...values)
        return result
    }
}

app.registerExtension({
    name: "MultiTalk.SpeakerBoxes",

    setup() {
        document.head.append(element("style", { textContent: STYLE }))
    },

    nodeCreated(node) {
        if (node.comfyClass !== NODE) return
        const editor = new BoxEditor(node)
        editor.state.hidden = true // the classic canvas looks here,
        editor.state.options.hidden = true // and Nodes 2.0 here
        node.addDOMWidget("speaker_boxes", "MULTITALK_SPEAKER_BOXES", editor.root, {
            serialize: false, // not in the API's prompt
            hideInPanel: true, // there is one element only, and it belongs on the node
            getMinHeight: () => 280,
        }).serialize = false // nor in the workflow
        node.setSize([Math.max(node.size[0], 380), Math.max(node.size[1], 460)])

        let timer
        after(node, "onAdded", () => {
            clearInterval(timer)
            timer = setInterval(() => editor.look(), LOOK)
        })
        after(node, "onRemoved", () => {
            clearInterval(timer)
            leftBehind.set(node.id, editor.root)
        })
        after(node, "onExecuted", (output) => editor.ran(output))
    },
})
