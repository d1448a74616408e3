/** What travels between client and server; docs/protocol.md says what each field means. */
export {};
