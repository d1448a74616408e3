import assert from "node:assert/strict";
import { test } from "node:test";

import { AudioBuffer } from "../dist/audio-buffer.js";
import { toBytes } from "../dist/samples.js";

const bytes = (...values) => Uint8Array.from(values);

test("audio is repeated from any position that is held", () => {
  const buffer = new AudioBuffer(1);
  buffer.add(bytes(1, 2, 3));
  buffer.add(bytes(4, 5));
  const between = (...positions) => [...buffer.between(...positions)].flatMap((block) => [...block]);
  assert.deepEqual(between(0), [1, 2, 3, 4, 5]);
  assert.deepEqual(between(2), [3, 4, 5]);
  assert.deepEqual(between(3), [4, 5]);
  assert.deepEqual(between(5), []);
  assert.deepEqual(between(1, 4), [2, 3, 4]);
  assert.deepEqual(between(3, 3), []);
  assert.equal(buffer.end, 5);
});

test("positions are samples, whatever their size", () => {
  const buffer = new AudioBuffer(2);
  buffer.add(bytes(1, 1, 2, 2));
  buffer.add(bytes(3, 3));
  assert.equal(buffer.end, 3);
  assert.deepEqual([...buffer.between(1)], [bytes(2, 2), bytes(3, 3)]);
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
  assert.throws(() => [...buffer.between(2)], RangeError);
  assert.deepEqual([...buffer.between(4)], [bytes(5)]);
});

test("floats become samples of full scale, and louder ones are clipped", () => {
  const samples = toBytes(Float32Array.of(0, 1, -1, 0.5, 2, -2), "pcm16");
  assert.deepEqual([...new Int16Array(samples.buffer)], [0, 32767, -32768, 16384, 32767, -32768]);
});
