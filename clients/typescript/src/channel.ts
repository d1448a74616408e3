import { ParakeetError, serverError } from "./errors.js";
import type { ErrorMessage, Hello, ServerMessage } from "./messages.js";

export type WebSocketMaker = new (url: string, protocols?: string[]) => WebSocket;

/** One connection, up to its `hello`, and from then on a handler of messages. */
export class Channel {
  readonly #socket: WebSocket;
  onMessage: (message: ServerMessage) => void = () => {};
  /** Called once, when the connection is gone. */
  onClose: () => void = () => {};

  private constructor(socket: WebSocket) {
    this.#socket = socket;
  }

  /** Connect and wait for `hello`. */
  static async open(
    make: WebSocketMaker,
    url: string,
    key: string | undefined,
    timeoutMs: number,
  ): Promise<{ channel: Channel; hello: Hello }> {
    const { channel, first } = await Channel.#firstMessage(make, url, key, timeoutMs);
    if (first.type === "hello") return { channel, hello: first };
    channel.close();
    throw serverError(first.code, first.message);
  }

  /**
   * Connect to go on with a stream. A full server, or a key at its limit, has no new stream, and still takes an old
   * one back.
   */
  static async reopen(
    make: WebSocketMaker,
    url: string,
    key: string | undefined,
    timeoutMs: number,
  ): Promise<Channel> {
    const address = new URL(url);
    address.searchParams.set("resume", "");
    const { channel, first } = await Channel.#firstMessage(make, address.href, key, timeoutMs);
    if (first.type === "hello" || first.code === "no_free_stream" || first.code === "over_limit") return channel;
    channel.close();
    throw serverError(first.code, first.message);
  }

  static #firstMessage(
    make: WebSocketMaker,
    url: string,
    key: string | undefined,
    timeoutMs: number,
  ): Promise<{ channel: Channel; first: Hello | ErrorMessage }> {
    return new Promise((resolve, reject) => {
      const socket = key === undefined ? new make(url) : new make(url, ["parakeet.v1", `parakeet.auth.${key}`]);
      socket.binaryType = "arraybuffer";
      const channel = new Channel(socket);
      let failed = false;
      const fail = (error: ParakeetError): void => {
        if (failed) return; // closing a socket that has failed is another error to some
        failed = true;
        clearTimeout(timer);
        reject(error);
        socket.close();
      };
      const timer = setTimeout(
        () => fail(new ParakeetError("timeout", `The server did not answer within ${timeoutMs} ms.`, true)),
        timeoutMs,
      );
      let greeted = false;
      socket.onmessage = ({ data }) => {
        if (typeof data !== "string") return;
        const message = JSON.parse(data) as ServerMessage;
        if (greeted) {
          channel.onMessage(message);
        } else if (message.type === "hello" || message.type === "error") {
          greeted = true;
          clearTimeout(timer);
          resolve({ channel, first: message });
        }
      };
      const refused = (): void =>
        fail(new ParakeetError("connection_lost", "The server refused the connection, or cannot be reached.", true));
      socket.onclose = () => (greeted ? channel.onClose() : refused());
      socket.onerror = () => {
        if (!greeted) refused(); // Node's WebSocket may have no `close` behind it
      };
    });
  }

  get isOpen(): boolean {
    return this.#socket.readyState === 1;
  }

  /** Bytes that wait in this process. */
  get waiting(): number {
    return this.#socket.bufferedAmount;
  }

  send(message: object): void {
    if (this.isOpen) this.#socket.send(JSON.stringify(message));
  }

  sendAudio(bytes: Uint8Array): void {
    if (this.isOpen && bytes.length > 0) this.#socket.send(bytes as Uint8Array<ArrayBuffer>);
  }

  close(): void {
    this.onMessage = () => {};
    this.onClose = () => {};
    this.#socket.close();
  }
}
