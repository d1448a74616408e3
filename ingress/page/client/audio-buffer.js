/** Audio that was sent and that the server may ask for again after a lost connection. Positions are samples. */
export class AudioBuffer {
    sampleBytes;
    #blocks = [];
    #end = 0;
    constructor(sampleBytes) {
        this.sampleBytes = sampleBytes;
    }
    /** Samples that were added so far: the position behind the last one. */
    get end() {
        return this.#end;
    }
    /** Samples that are held. */
    get held() {
        return this.#end - (this.#blocks[0]?.first ?? this.#end);
    }
    add(bytes) {
        if (bytes.length % this.sampleBytes !== 0)
            throw new RangeError("a block is not of whole samples");
        const first = this.#end;
        this.#end += bytes.length / this.sampleBytes;
        this.#blocks.push({ first, end: this.#end, bytes });
    }
    /** Let go of everything before this position. */
    release(position) {
        let block = this.#blocks[0];
        while (block !== undefined && block.end <= position) {
            this.#blocks.shift();
            block = this.#blocks[0];
        }
    }
    /**
     * The next audio from one position on, up to another: the rest of one block; undefined where there is none. Throws
     * where some of it is held no more.
     */
    next(position, until = this.#end) {
        const oldest = this.#blocks[0]?.first ?? this.#end;
        if (position < oldest)
            throw new RangeError(`audio before sample ${oldest} is held no more`);
        const block = this.#blocks.find(({ end }) => end > position);
        if (block === undefined || position >= until)
            return undefined;
        const to = Math.min(block.end, until);
        return block.bytes.subarray(this.sampleBytes * (position - block.first), this.sampleBytes * (to - block.first));
    }
}
