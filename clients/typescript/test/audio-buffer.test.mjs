import assert from "node:assert/strict";
import { test } from "node:test";

import { AudioBuffer, toInt16 } from "../dist/audio-buffer.js";

const samples = (...values) => Int16Array.from(values);

test("audio is repeated from any position that is held", () => {
  const buffer = new AudioBuffer();
  buffer.add(samples(1, 2, 3));
  buffer.add(samples(4, 5));
  const from = (position) => [...buffer.from(position)].flatMap((block) => [...block]);
  assert.deepEqual(from(0), [1, 2, 3, 4, 5]);
  assert.deepEqual(from(2), [3, 4, 5]);
  assert.deepEqual(from(3), [4, 5]);
  assert.deepEqual(from(5), []);
  assert.equal(buffer.end, 5);
});

test("what is released is held no more, in whole blocks", () => {
  const buffer = new AudioBuffer();
  buffer.add(samples(1, 2, 3));
  buffer.add(samples(4, 5));
  buffer.release(2);
  assert.equal(buffer.held, 5);
  buffer.release(4);
  assert.equal(buffer.held, 2);
  assert.throws(() => [...buffer.from(2)], RangeError);
  assert.deepEqual([...buffer.from(4)], [samples(5)]);
});

test("floats become samples of full scale, and louder ones are clipped", () => {
  assert.deepEqual(toInt16(Float32Array.of(0, 1, -1, 0.5, 2, -2)), samples(0, 32767, -32768, 16384, 32767, -32768));
});
