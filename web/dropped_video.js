// The editor looks for a graph in a dropped MP4, but not in an MKV (of MultiTalk Long Video's codec "lossless"), although its reader of WebM
// reads both: they are one format.

import { app } from "../../scripts/app.js"

app.registerExtension({
    name: "MultiTalk.DroppedVideo",

    setup() {
        const { handleFile } = app
        app.handleFile = function (file, ...more) {
            const readable = /\.mkv$/i.test(file.name) ? new File([file], file.name, { type: "video/webm" }) : file
            return handleFile.call(this, readable, ...more)
        }
    },
})
