/** Marks that are to be sent, and marks that were sent and may have been lost with the connection. */
export class Marks {
    #marks = [];
    #numSent = 0; // of those, from the first on
    /** Note a message behind this many samples. */
    add(place, mark) {
        this.#marks.push({ place, mark });
    }
    /** The next mark to be sent. */
    get next() {
        return this.#marks[this.#numSent];
    }
    /** Note that the next mark was sent. */
    sent() {
        this.#numSent += 1;
    }
    /** Note the answer to a `finalize`: the first that has none. */
    answered() {
        const at = this.#marks.findIndex(({ mark }) => mark.type === "finalize");
        if (at < 0 || at >= this.#numSent)
            return;
        this.#marks.splice(at, 1);
        this.#numSent -= 1;
    }
    /** Note what the server has decoded: `phrases` before it have arrived. */
    decoded(samples) {
        const arrived = ({ place, mark }, at) => at < this.#numSent && mark.type === "phrases" && place < samples;
        const kept = this.#marks.filter((one, at) => !arrived(one, at));
        this.#numSent -= this.#marks.length - kept.length;
        this.#marks = kept;
    }
    /** Send all again: the connection was lost. */
    repeat() {
        this.#numSent = 0;
    }
}
