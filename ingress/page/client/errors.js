/** A stream that failed. `code` is the server's, or one of this client's: `connection_lost`, `timeout`. */
export class ParakeetError extends Error {
    code;
    /** Whether the same may succeed when it is tried again later. */
    mayRetry;
    constructor(code, message, mayRetry) {
        super(message);
        this.name = "ParakeetError";
        this.code = code;
        this.mayRetry = mayRetry;
    }
}
// begin: retries, which `python -m ingress.protocol_docs` writes
const RETRIES = {
    slow_reader: "resume",
    no_free_stream: "later",
    no_worker: "resume",
    over_limit: "later",
    too_many_connections: "later",
    redis_unavailable: "resume",
    stream_lost: "anew",
    draining: "resume",
    phrases_full: "anew",
    worker_failed: "anew",
    internal: "resume",
};
// end: retries
export function serverError(code, message) {
    return new ParakeetError(code, message, Object.hasOwn(RETRIES, code));
}
/** Whether a running stream that can be resumed waits for its client after the server's error. */
export function waitsAfter(code) {
    return RETRIES[code] === "resume";
}
/** Whether a stream that is being resumed still waits after this error: the attempt failed, and not the stream. */
export function stillWaitsAfter({ code, mayRetry }) {
    return mayRetry && RETRIES[code] !== "anew";
}
