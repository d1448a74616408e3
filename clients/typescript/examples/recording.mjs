// Streams a recording to a real server and prints its results as JSON lines; a test runs it.
//   node --experimental-websocket examples/recording.mjs ws://HOST:PORT/ RATE < samples.s16le
import { Stream } from "../dist/index.js";

const [url, rate] = process.argv.slice(2);
const chunks = [];
for await (const chunk of process.stdin) chunks.push(chunk);
const data = Buffer.concat(chunks);
const samples = new Int16Array(data.buffer.slice(data.byteOffset, data.byteOffset + data.length));

const stream = await Stream.connect(url, { sampleRate: Number(rate), words: true });
const reading = (async () => {
  for await (const { text, is_final, seq } of stream) console.log(JSON.stringify({ text, is_final, seq }));
})();
for (let at = 0; at < samples.length; at += 1280) await stream.send(samples.subarray(at, at + 1280));
await stream.finish();
await reading;
