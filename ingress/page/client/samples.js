const SAMPLE_BYTES = { pcm16: 2, f32: 4, mulaw: 1, alaw: 1 };
export function sampleBytes(encoding) {
    return SAMPLE_BYTES[encoding];
}
/**
 * A copy of samples as bytes in this encoding. Numbers become what it asks for, `pcm16` or `f32`; bytes are taken as
 * they are. Throws TypeError for numbers where it is G.711, which this client does not make.
 */
export function toBytes(samples, encoding) {
    if (samples instanceof Uint8Array)
        return samples.slice();
    if (encoding === "pcm16") {
        return packed(2, samples, (view, at, value) => view.setInt16(at, value, true), toInt16);
    }
    if (encoding === "f32") {
        return packed(4, samples, (view, at, value) => view.setFloat32(at, value, true), toFloat);
    }
    throw new TypeError(`samples in '${encoding}' are given as bytes (Uint8Array)`);
}
function packed(size, samples, put, convert) {
    const bytes = new Uint8Array(size * samples.length);
    const view = new DataView(bytes.buffer);
    const isFloat = samples instanceof Float32Array;
    samples.forEach((value, at) => put(view, size * at, convert(value, isFloat)));
    return bytes;
}
/** Floats from -1 to 1 as 16 bits; louder ones are clipped. */
function toInt16(value, isFloat) {
    if (!isFloat)
        return value;
    const clipped = Math.max(-1, Math.min(1, value));
    return Math.round(clipped < 0 ? clipped * 0x8000 : clipped * 0x7fff);
}
function toFloat(value, isFloat) {
    return isFloat ? value : value / 0x8000;
}
