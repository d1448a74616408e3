import { ParakeetError, serverError } from "./errors.js";
/** One connection, up to its `hello`, and from then on a handler of messages. */
export class Channel {
    #socket;
    #silences = 0; // looks in a row, one each `silenceMs`, that found no new message
    #watch;
    onMessage = () => { };
    /** Called once, when the connection is gone. */
    onClose = () => { };
    constructor(socket) {
        this.#socket = socket;
    }
    /** Connect and wait for `hello`. */
    static async open(to) {
        const { channel, first } = await Channel.#firstMessage(to);
        if (first.type === "hello")
            return { channel, hello: first };
        channel.close();
        throw serverError(first.code, first.message);
    }
    /**
     * Connect to go on with a stream. A full server, or a key at its limit, has no new stream, and still takes an old
     * one back.
     */
    static async reopen(to) {
        const address = new URL(to.url);
        address.searchParams.set("resume", "");
        const { channel, first } = await Channel.#firstMessage({ ...to, url: address.href });
        if (first.type === "hello" || first.code === "no_free_stream" || first.code === "over_limit")
            return channel;
        channel.close();
        throw serverError(first.code, first.message);
    }
    static #firstMessage(to) {
        const { make, url, key, timeoutMs, silenceMs } = to;
        return new Promise((resolve, reject) => {
            const socket = key === undefined ? new make(url) : new make(url, ["parakeet.v1", `parakeet.auth.${key}`]);
            socket.binaryType = "arraybuffer";
            const channel = new Channel(socket);
            let failed = false;
            const fail = (error) => {
                if (failed)
                    return; // closing a socket that has failed is another error to some
                failed = true;
                clearTimeout(timer);
                reject(error);
                socket.close();
            };
            const timer = setTimeout(() => fail(new ParakeetError("timeout", `The server did not answer within ${timeoutMs} ms.`, true)), timeoutMs);
            let greeted = false;
            socket.onmessage = ({ data }) => {
                if (typeof data !== "string")
                    return;
                const message = JSON.parse(data);
                channel.#silences = 0;
                if (greeted) {
                    channel.onMessage(message);
                }
                else if (message.type === "hello" || message.type === "error") {
                    greeted = true;
                    clearTimeout(timer);
                    channel.#watch = setInterval(() => channel.#onSilence(), silenceMs);
                    channel.#watch.unref?.(); // Node ends when nothing but this is left
                    resolve({ channel, first: message });
                }
            };
            const refused = () => fail(new ParakeetError("connection_lost", "The server refused the connection, or cannot be reached.", true));
            socket.onclose = () => (greeted ? channel.#gone() : refused());
            socket.onerror = () => {
                if (!greeted)
                    refused(); // Node's WebSocket may have no `close` behind it
            };
        });
    }
    get isOpen() {
        return this.#socket.readyState === 1;
    }
    /** Bytes that wait in this process. */
    get waiting() {
        return this.#socket.bufferedAmount;
    }
    send(message) {
        if (this.isOpen)
            this.#socket.send(JSON.stringify(message));
    }
    sendAudio(bytes) {
        if (this.isOpen && bytes.length > 0)
            this.#socket.send(bytes);
    }
    close() {
        clearInterval(this.#watch);
        this.onMessage = () => { };
        this.onClose = () => { };
        this.#socket.close();
    }
    /**
     * Look whether the server is there: where it says nothing, a WebSocket notices after many minutes that it is gone.
     * Looks are counted, not time: a tab that slept has messages that it has not read.
     */
    #onSilence() {
        this.#silences += 1;
        if (this.#silences === 2)
            this.send({ type: "ping" });
        if (this.#silences > 2)
            this.#gone();
    }
    #gone() {
        const told = this.onClose;
        this.close();
        told();
    }
}
