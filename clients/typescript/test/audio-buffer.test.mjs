import assert from "node:assert/strict";
import { test } from "node:test";

import { AudioBuffer } from "../dist/audio-buffer.js";
import { toBytes } from "../dist/samples.js";

const bytes = (...values) => Uint8Array.from(values);

/** All audio between two positions, block by block. */
function between(buffer, from, until, sampleBytes = 1) {
  const blocks = [];
  let block;
  for (let at = from; (block = buffer.next(at, until)) !== undefined; at += block.length / sampleBytes) {
    blocks.push([...block]);
  }
  return blocks;
}

test("audio is repeated from any position that is held", () => {
  const buffer = new AudioBuffer(1);
  buffer.add(bytes(1, 2, 3));
  buffer.add(bytes(4, 5));
  assert.deepEqual(between(buffer, 0), [[1, 2, 3], [4, 5]]);
  assert.deepEqual(between(buffer, 2), [[3], [4, 5]]);
  assert.deepEqual(between(buffer, 3), [[4, 5]]);
  assert.deepEqual(between(buffer, 5), []);
  assert.deepEqual(between(buffer, 1, 4), [[2, 3], [4]]);
  assert.deepEqual(between(buffer, 3, 3), []);
  assert.deepEqual(between(buffer, 4, 3), []);
  assert.equal(buffer.end, 5);
});

test("positions are samples, whatever their size", () => {
  const buffer = new AudioBuffer(2);
  buffer.add(bytes(1, 1, 2, 2));
  buffer.add(bytes(3, 3));
  assert.equal(buffer.end, 3);
  assert.deepEqual(between(buffer, 1, 3, 2), [[2, 2], [3, 3]]);
  assert.throws(() => buffer.add(bytes(1)), RangeError);
});

test("what is released is held no more, in whole blocks", () => {
  const buffer = new AudioBuffer(1);
  buffer.add(bytes(1, 2, 3));
  buffer.add(bytes(4, 5));
  buffer.release(2);
  assert.equal(buffer.held, 5);
  buffer.release(4);
  assert.equal(buffer.held, 2);
  assert.throws(() => buffer.next(2), RangeError);
  assert.deepEqual(between(buffer, 4), [[5]]);
});

test("floats become samples of full scale, and louder ones are clipped", () => {
  const samples = toBytes(Float32Array.of(0, 1, -1, 0.5, 2, -2), "pcm16");
  assert.deepEqual([...new Int16Array(samples.buffer)], [0, 32767, -32768, 16384, 32767, -32768]);
});
