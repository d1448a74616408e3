import { AudioBuffer } from "./audio-buffer.js";
import { Channel } from "./channel.js";
import { ParakeetError, serverError, stillWaitsAfter, waitsAfter } from "./errors.js";
import { Marks } from "./marks.js";
import { Patience } from "./patience.js";
import { sampleBytes, toBytes } from "./samples.js";
const DEFAULT_RATE = 16_000;
const DEFAULT_TIMEOUT_MS = 10_000;
const DEFAULT_SILENCE_MS = 10_000;
const DEFAULT_RESUME_MS = 25_000; // servers keep a stream for 30 s
const DEFAULT_AHEAD_S = 30;
const MAX_WAITING_BYTES = 1 << 20;
const MAX_MESSAGE_BYTES = 32 << 10; // of whole samples in each encoding, well below what a server takes
const FULL_PAUSE_MS = 20; // no event says that a WebSocket has room again
const FINAL_TIMEOUT_MS = 60_000; // without progress, once no more audio comes
// Results that nobody has read yet; the oldest go first.
const MAX_UNREAD = 4096;
// A key travels as the name of a subprotocol, which is a token of HTTP.
const OF_A_SUBPROTOCOL = /^[\w!#$%&'*+.^`|~-]*$/;
/** One stream of audio and its results. `for await (const result of stream)` ends with the final result. */
export class Stream {
    #to;
    #options;
    #encoding;
    #buffer;
    #marks = new Marks();
    #waiters = [];
    #results = [];
    #channel;
    #hello;
    #token;
    /** The one before, which is all that a server knows whose Redis forgot its last moments. */
    #tokenBefore;
    #lastSeq = 0;
    #acked = 0;
    #written = 0; // samples that went to the connection, those of lost connections included
    #closeWritten = false;
    #retry; // to write, while the connection is full
    #finishing = false;
    #final;
    #error;
    /** The final result of a part of the audio only: the error follows that ended the stream. */
    #earlyFinal;
    #reconnecting = false;
    #patience;
    #finalTimer;
    constructor(to, options, channel, hello) {
        this.#to = to;
        this.#options = options;
        this.#encoding = options.encoding ?? "pcm16";
        this.#buffer = new AudioBuffer(sampleBytes(this.#encoding));
        this.#patience = new Patience(options.resumeMs ?? DEFAULT_RESUME_MS);
        this.#channel = channel;
        this.#hello = hello;
        this.#token = hello.resume_token;
        this.#attach(channel);
        channel.send({ type: "config", ...this.#config() });
    }
    /** Connect to ws:// or wss://; throws ParakeetError, and TypeError for a key that the handshake cannot carry. */
    static async connect(url, options = {}) {
        const make = options.WebSocket ?? globalThis.WebSocket;
        if (make === undefined)
            throw new TypeError("this environment has no WebSocket: give one as an option");
        if (options.key !== undefined && !OF_A_SUBPROTOCOL.test(options.key)) {
            throw new TypeError("the key has a character that no key has: all of them are visible ASCII, without spaces");
        }
        const to = {
            make,
            url,
            key: options.key,
            timeoutMs: options.timeoutMs ?? DEFAULT_TIMEOUT_MS,
            silenceMs: options.silenceMs ?? DEFAULT_SILENCE_MS,
        };
        const { channel, hello } = await Channel.open(to);
        return new Stream(to, options, channel, hello);
    }
    get streamId() {
        return this.#hello.stream_id;
    }
    get sampleRate() {
        return this.#options.sampleRate ?? DEFAULT_RATE;
    }
    /** Optional messages that the server understands, such as "finalize". */
    get capabilities() {
        return this.#hello.capabilities;
    }
    /** Seconds of audio that the server has decoded. */
    get decodedS() {
        return this.#acked / this.sampleRate;
    }
    /**
     * Send mono samples: 16-bit, floats from -1 to 1, or bytes in the option `encoding`. Any number of them: they are
     * cut into messages. Waits while too much is under way. A caller that cannot wait, such as a microphone's, may
     * ignore the promise: all audio goes out in the order of the calls.
     */
    async send(samples) {
        const bytes = toBytes(samples, this.#encoding); // a copy: the caller may use its array again
        if (bytes.length % sampleBytes(this.#encoding) !== 0)
            throw new RangeError("the bytes are not whole samples");
        this.#throwIfOver();
        for (let at = 0; at < bytes.length; at += MAX_MESSAGE_BYTES) {
            this.#buffer.add(bytes.subarray(at, at + MAX_MESSAGE_BYTES));
        }
        const { end } = this.#buffer;
        this.#write();
        const waits = () => end - this.#acked > this.#maxAhead || (this.#written < end && !this.#reconnecting);
        while (this.#error === undefined && waits())
            await this.#news();
        this.#throwIfFailed();
    }
    /**
     * Ask for a result of all audio so far, whose `from_finalize` is true; the stream goes on. After a lost
     * connection it may be answered twice. Throws where the server has none.
     */
    finalize() {
        this.#mark({ type: "finalize" });
    }
    /** Replace the phrases that the speaker is likely to say, for the audio from here on. */
    setPhrases(phrases) {
        this.#mark({ type: "phrases", phrases });
    }
    #mark(mark) {
        this.#throwIfOver();
        if (!this.capabilities.includes(mark.type)) {
            throw new ParakeetError("unknown_type", `The server does not know '${mark.type}'.`, false);
        }
        this.#marks.add(this.#buffer.end, mark);
        this.#write();
    }
    /** Say that no more audio comes; returns the final result. */
    async finish() {
        this.#throwIfFailed();
        if (!this.#finishing) {
            this.#finishing = true;
            this.#expectFinal();
            this.#write();
        }
        while (this.#final === undefined && this.#error === undefined)
            await this.#news();
        this.#throwIfFailed();
        return this.#final;
    }
    /** Drop the stream; nothing more comes of it. The server is told, so that it does not wait for this client. */
    close() {
        if (this.#final === undefined && this.#error === undefined && !this.#reconnecting) {
            this.#channel.send({ type: "close" });
        }
        this.#fail(new ParakeetError("closed", "The stream was closed.", false));
    }
    async *[Symbol.asyncIterator]() {
        for (;;) {
            const result = this.#results.shift();
            if (result !== undefined) {
                yield result;
                if (result.is_final)
                    return;
            }
            else if (this.#final !== undefined) {
                return;
            }
            else {
                this.#throwIfFailed();
                await this.#news();
            }
        }
    }
    #config() {
        const { sampleRate, resume, ...given } = this.#options;
        const { key, timeoutMs, silenceMs, resumeMs, maxAheadS, WebSocket, onWarning, onConnection, ...config } = given;
        return { ...config, sample_rate: this.sampleRate, resume: resume ?? true };
    }
    #attach(channel) {
        channel.onMessage = (message) => this.#take(message);
        channel.onClose = () => this.#lost();
    }
    #take(message) {
        switch (message.type) {
            case "result":
                if (message.seq <= this.#lastSeq)
                    return; // repeated after a resume
                this.#lastSeq = message.seq;
                this.#patience.progressed();
                this.#acknowledge(message.audio_ack_samples);
                if (message.from_finalize)
                    this.#marks.answered();
                if (message.is_final && !this.#isWhole(message)) {
                    this.#earlyFinal = message;
                    break;
                }
                this.#deliver(message);
                if (message.is_final)
                    this.#end(message);
                break;
            case "ack":
                this.#acknowledge(message.audio_ack_samples);
                break;
            case "warning":
                this.#options.onWarning?.(message);
                break;
            case "error":
                this.#serverSaysError(message.code, message.message);
                break;
            default:
                break;
        }
        this.#write(); // there may be room
        this.#tell();
    }
    #serverSaysError(code, text) {
        if (code === "unknown_type" || code === "audio_after_final")
            return; // the stream goes on
        const error = serverError(code, text);
        const goesOn = this.#resumes && waitsAfter(code);
        if (goesOn && this.#earlyFinal === undefined)
            void this.#reconnect(error);
        else
            this.#fail(error);
    }
    #isWhole(final) {
        return this.#finishing && final.audio_ack_samples >= this.#buffer.end;
    }
    #deliver(result) {
        this.#results.push(result);
        if (this.#results.length > MAX_UNREAD)
            this.#results.shift();
    }
    get #resumes() {
        return this.#options.resume ?? true;
    }
    #acknowledge(samples) {
        if (samples <= this.#acked)
            return;
        this.#acked = samples;
        this.#patience.progressed();
        if (this.#finishing)
            this.#expectFinal();
        this.#buffer.release(this.#acked);
        this.#marks.decoded(this.#acked);
    }
    #lost() {
        if (this.#final !== undefined || this.#error !== undefined)
            return;
        if (this.#earlyFinal !== undefined) {
            const text = "The server ended the stream before the end of its audio.";
            return this.#fail(new ParakeetError("connection_lost", text, false));
        }
        const error = new ParakeetError("connection_lost", "The connection was lost.", true);
        if (this.#resumes)
            void this.#reconnect(error);
        else
            this.#fail(error);
    }
    async #reconnect(cause) {
        if (this.#reconnecting)
            return;
        this.#reconnecting = true;
        this.#channel.close();
        try {
            this.#options.onConnection?.(cause);
            await this.#goOnInTime(cause);
        }
        catch (error) {
            // Nobody waits for this promise.
            this.#fail(new ParakeetError("stream_lost", `The stream cannot go on: ${String(error)}`, false));
        }
    }
    /** Try until the stream goes on; where that does not succeed in time, it fails with the cause. */
    async #goOnInTime(cause) {
        this.#patience.lost();
        let isUnknown = false; // to the server, and nothing of it has come back: another stream is the same to the caller
        while (await this.#patience.pause()) {
            if (this.#error !== undefined)
                return;
            try {
                await (isUnknown ? this.#beginAnew() : this.#resume());
                return;
            }
            catch (error) {
                if (!(error instanceof ParakeetError))
                    throw error;
                if (error.code === "resume_refused" && this.#tokenBefore !== undefined) {
                    this.#token = this.#tokenBefore;
                    this.#tokenBefore = undefined;
                }
                else if (error.code === "resume_refused" && this.#lastSeq === 0 && this.#acked === 0) {
                    isUnknown = true;
                }
                else if (!stillWaitsAfter(error)) {
                    this.#fail(error);
                    return;
                }
            }
        }
        this.#fail(cause);
    }
    /** Begin a stream with all of the audio. The server it began at may have died before it knew of the stream. */
    async #beginAnew() {
        const { channel, hello } = await Channel.open(this.#to);
        this.#hello = hello;
        this.#token = hello.resume_token;
        channel.send({ type: "config", ...this.#config() });
        this.#goOn(channel, 0);
    }
    /** Connect, go on with the stream, and repeat what the server does not have. */
    async #resume() {
        const { timeoutMs } = this.#to;
        const channel = await Channel.reopen(this.#to);
        const nextSample = await new Promise((resolve, reject) => {
            const timer = setTimeout(() => refuse("timeout", "The server did not resume the stream in time."), timeoutMs);
            const refuse = (code, text) => {
                clearTimeout(timer);
                channel.close();
                const mayRetry = code === "timeout" || code === "connection_lost";
                reject(mayRetry ? new ParakeetError(code, text, true) : serverError(code, text));
            };
            channel.onClose = () => refuse("connection_lost", "The connection was lost.");
            channel.onMessage = (message) => {
                if (message.type === "resumed") {
                    clearTimeout(timer);
                    this.#tokenBefore = this.#token;
                    this.#token = message.resume_token;
                    resolve(message.next_sample);
                }
                else if (message.type === "error") {
                    refuse(message.code, message.message);
                }
                else {
                    this.#take(message);
                }
            };
            if (!channel.isOpen)
                return refuse("connection_lost", "The connection was lost.");
            channel.send({
                type: "resume",
                stream_id: this.#hello.stream_id,
                resume_token: this.#token,
                last_seq: this.#lastSeq,
                audio_ack_samples: this.#acked,
            });
        });
        this.#goOn(channel, nextSample);
    }
    /** Use a new connection; the server has the samples before `nextSample`. */
    #goOn(channel, nextSample) {
        if (this.#error !== undefined) {
            channel.send({ type: "close" }); // the stream was closed, or has failed, meanwhile
            channel.close();
            return;
        }
        this.#channel = channel;
        this.#attach(channel);
        this.#written = nextSample;
        this.#closeWritten = false;
        this.#marks.repeat();
        if (this.#finishing)
            this.#expectFinal();
        this.#patience.resumed();
        this.#reconnecting = false;
        this.#options.onConnection?.(undefined);
        this.#write();
        this.#tell();
    }
    /** Write what there is room for, in order: audio, marks at their places, and the end of the audio. */
    #write() {
        if (this.#reconnecting || this.#error !== undefined)
            return;
        for (;;) {
            const mark = this.#marks.next;
            const block = this.#buffer.next(this.#written, mark?.place);
            if (block !== undefined) {
                if (!this.#hasRoom())
                    return;
                this.#written += block.length / sampleBytes(this.#encoding);
                this.#channel.sendAudio(block);
            }
            else if (mark !== undefined) {
                this.#marks.sent();
                this.#channel.send(mark.mark);
            }
            else {
                break;
            }
        }
        if (!this.#finishing || this.#closeWritten)
            return;
        this.#closeWritten = true;
        this.#channel.send({ type: "close" });
    }
    #hasRoom() {
        if (this.#written - this.#acked > this.#maxAhead)
            return false;
        if (this.#channel.waiting <= MAX_WAITING_BYTES)
            return true;
        this.#retry ??= setTimeout(() => {
            this.#retry = undefined;
            this.#write();
            this.#tell();
        }, FULL_PAUSE_MS);
        return false;
    }
    get #maxAhead() {
        return (this.#options.maxAheadS ?? DEFAULT_AHEAD_S) * this.sampleRate;
    }
    #expectFinal() {
        clearTimeout(this.#finalTimer);
        this.#finalTimer = setTimeout(() => this.#fail(new ParakeetError("timeout", "The final result did not come in time.", true)), FINAL_TIMEOUT_MS);
    }
    #end(result) {
        this.#final = result;
        clearTimeout(this.#finalTimer);
        this.#channel.close();
    }
    #fail(error) {
        if (this.#final !== undefined || this.#error !== undefined)
            return;
        this.#error = error;
        if (this.#earlyFinal !== undefined)
            this.#deliver({ ...this.#earlyFinal, is_final: false });
        clearTimeout(this.#finalTimer);
        this.#channel.close();
        this.#tell();
    }
    #throwIfFailed() {
        if (this.#error !== undefined)
            throw this.#error;
    }
    #throwIfOver() {
        this.#throwIfFailed();
        if (this.#finishing)
            throw new ParakeetError("audio_after_final", "The stream was finished.", false);
    }
    #news() {
        return new Promise((resolve) => this.#waiters.push(resolve));
    }
    #tell() {
        for (const resolve of this.#waiters.splice(0))
            resolve();
    }
}
