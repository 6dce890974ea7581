//! Bounds of clients, their connections and heads, and of the log.

use std::time::Duration;

/// Bytes of one HTTP/1.1 request head, which is the request line and the header fields.
///
/// Beyond it: 431 `head-too-large`, or 414 `uri-too-long` if half of it is the request line.
///
/// Listeners: proxy, route, intercepted, admin.
pub const HEAD_BYTES: usize = 64 * 1024;
/// Header fields of one request head. In HTTP/1 it is the default of the library.
///
/// Beyond it: 431 `head-too-large`.
///
/// Listeners: proxy, route, intercepted, admin.
pub const HEAD_FIELDS: usize = 100;
/// Time for which a connection is read after the refusal of an unreadable head. A client that is
/// still sending can then read the refusal.
///
/// Beyond it: the connection is closed.
///
/// Listeners: proxy, route, intercepted, admin.
pub const HEAD_LINGER: Duration = Duration::from_secs(1);
/// Time for which the rest of a request body is read after its response. A client that is still
/// sending can then read the response.
///
/// Beyond it: the connection or stream is ended.
///
/// Listeners: proxy, route, intercepted, admin.
pub const LINGER: Duration = Duration::from_secs(30);
/// Time without a byte for which the rest of a request body is read after its response.
///
/// Beyond it: the connection or stream is ended.
///
/// Listeners: proxy, route, intercepted, admin.
pub const LINGER_SILENCE: Duration = Duration::from_secs(5);
/// Bytes of the rest of a request body that are read before its response, so that the connection
/// stays open. With a longer rest the connection is closed after the response.
pub const REST_BYTES: usize = 64 * 1024;
/// Time for which a response waits for such a rest, which is usually on its way.
pub const REST_WAIT: Duration = Duration::from_millis(25);
/// Bytes that are read ahead while a request is held and its body is not read. They serve only to
/// notice that the client has left.
pub const HELD_PEEK: usize = 4 * 1024;
/// Time for a client to send one request head, and for an HTTP/1 connection without a request.
///
/// Beyond it: the connection is closed.
///
/// Listeners: proxy, route, intercepted, admin.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// Time for a client's TLS handshake, with a listener or inside its CONNECT tunnel.
///
/// Beyond it: the connection is closed.
///
/// Listeners: proxy, route, intercepted, admin.
pub const TLS_ACCEPT_TIMEOUT: Duration = Duration::from_secs(10);
/// Failed authentications of one address beyond loopback per minute that are answered at once.
///
/// Beyond it: later ones are answered after a delay.
///
/// Listeners: proxy, route, admin.
pub const AUTH_FAILURES: u32 = 10;
/// Period in which [`AUTH_FAILURES`] are counted for each address.
pub const AUTH_FAILURE_PERIOD: Duration = Duration::from_secs(60);
/// Longest delay of the answer to a failed authentication.
///
/// Beyond it: the answer is not delayed further.
pub const AUTH_FAILURE_DELAY: Duration = Duration::from_secs(5);
/// Time between two warnings about the failed authentications of one address.
///
/// Beyond it: the next warning counts the failures between.
pub const AUTH_FAILURE_LOG: Duration = Duration::from_secs(10);
/// Addresses or clients that each throttle counts separately, such as those of failed
/// authentications and of pushes.
///
/// Beyond it: further ones share one count.
pub const THROTTLED_ADDRESSES: usize = 16_384;
/// Time after the loss of a client's access in which its connections end gracefully.
///
/// Beyond it: they are closed, whatever they still do.
///
/// Listeners: proxy, intercepted.
pub const REVOCATION_GRACE: Duration = Duration::from_millis(500);
/// Time without a request for which a drain keeps an HTTP/1 connection open. A request that comes in
/// this time is answered with `Connection: close`. HTTP/2 has GOAWAY for this.
///
/// Beyond it: the connection is closed.
///
/// Listeners: proxy, route, intercepted.
pub const DRAIN_IDLE: Duration = Duration::from_millis(500);
/// Time for the first byte of a connection, or for the whole preface of HTTP/2. It begins after the
/// TLS handshake or with the tunnel of a CONNECT.
///
/// Beyond it: the connection is closed.
///
/// Listeners: proxy, route, intercepted, admin.
pub const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for which an HTTP/2 connection of a client may have no open stream.
///
/// Beyond it: GOAWAY, and the connection is closed.
///
/// Listeners: proxy, route, intercepted, admin.
pub const CONNECTION_IDLE: Duration = Duration::from_secs(60);
/// Time between GOAWAY and the close of an idle HTTP/2 connection, in which requests on their way
/// are served.
///
/// Beyond it: the connection is closed.
pub const GOAWAY_GRACE: Duration = Duration::from_secs(1);
/// Default time for which a peer may take no byte of a body, or send none of a request body before
/// the response (`body_idle_timeout`). Then the exchange ends.
///
/// Beyond it: 408 `body-timeout`, 504 `origin-stalled`, or a reset with `client-stalled`.
///
/// Listeners: proxy, route, intercepted, admin.
pub const BODY_IDLE: Duration = Duration::from_secs(60);
/// Time for which a client of gRPC may send no byte of its request body before the response, unless
/// `body_idle_timeout` is longer.
///
/// Beyond it: 408 `body-timeout`.
pub const GRPC_BODY_IDLE: Duration = Duration::from_secs(15 * 60);
/// Bytes of a connection that the system holds and has not sent yet. Beyond them a peer that takes
/// few bytes shows that outpace must wait.
pub const UNSENT_BYTES: u32 = 64 * 1024;
/// Bytes of a response that are handed to one HTTP/2 stream of a client at once.
pub const STREAM_CHUNK: usize = 64 * 1024;
/// Streams that one HTTP/2 connection may have open at the same time, from a client or to an
/// origin.
///
/// Beyond it: a client's stream is reset (REFUSED_STREAM), and a further connection to the origin
/// is opened.
///
/// Listeners: proxy, route, intercepted, admin.
pub const H2_STREAMS: u32 = 256;
/// Bytes of the flow-control window of one HTTP/2 stream (RFC 9113 section 5.2).
pub const H2_STREAM_WINDOW: u32 = 256 * 1024;
/// Bytes of the flow-control window of one HTTP/2 connection. The window is far above that of a
/// stream, so one slow reader cannot stall the other streams.
pub const H2_CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
/// Bytes of the flow-control window of one HTTP/2 connection to an origin. It has room for all its
/// streams, because they serve different clients and any number of them may be slow readers.
pub const H2_ORIGIN_WINDOW: u32 = H2_STREAMS * H2_STREAM_WINDOW;
/// Bytes of the names and values in one HTTP/2 request head, with the path.
///
/// Beyond it: 431 `head-too-large` on its stream only.
///
/// Listeners: proxy, route, intercepted, admin.
pub const HTTP2_HEAD: usize = 64 * 1024;
/// Bytes of one uncompressed HTTP/2 header list (RFC 9113 section 6.5.2) that its connection
/// survives. The library refuses longer lists, so this is above [`HTTP2_HEAD`].
///
/// Beyond it: 431 without a reason, or the connection is closed.
///
/// Listeners: proxy, route, intercepted, admin.
pub const H2_HEADER_LIST: u32 = 256 * 1024;
/// Certificates for intercepted hosts that are cached in memory.
///
/// Beyond it: the certificate that was used least is created again when it is needed.
pub const LEAVES: u64 = 4096;
/// New certificates that one client beyond loopback may cause in 10 s. A client without a name
/// counts by its address.
///
/// Beyond it: its CONNECT waits, then 429 `too-many-hosts`.
pub const CLIENT_LEAVES: u32 = 500;
/// New certificates for all clients together in 10 s.
///
/// Beyond it: a CONNECT waits, then 429 `too-many-hosts`.
pub const LEAVES_CREATED: u32 = 2000;
/// Period in which [`CLIENT_LEAVES`] and [`LEAVES_CREATED`] are counted.
pub const LEAF_PERIOD: Duration = Duration::from_secs(10);
/// Time for which a CONNECT to a new host waits for the creation of its certificate.
///
/// Beyond it: 429 `too-many-hosts`.
pub const LEAF_WAIT: Duration = Duration::from_secs(5);
/// Time before the end of the CA's certificate from which its expiry is reported.
pub const CA_EXPIRY_NOTICE: Duration = Duration::from_secs(30 * 24 * 3600);
/// Time between two reports of the CA's expiry, and of other problems of the CA.
///
/// Beyond it: the report is repeated.
pub const CA_REPORT_EVERY: Duration = Duration::from_secs(24 * 3600);
/// Clients that are remembered because they rejected outpace's certificate, so that each causes one
/// warning only.
pub const TRUST_COMPLAINTS: u64 = 1024;
/// Kinds of problems that the report on a command of `outpace run` lists, by reason and host.
///
/// Beyond it: further kinds are left out.
pub const COMMAND_PROBLEMS: usize = 16;
/// Time for which the report on a command waits until the connections of the command are closed.
///
/// Beyond it: the report has what was counted so far.
pub const COMMAND_REPORT_WAIT: Duration = Duration::from_millis(50);
/// Time for which a TCP peer may acknowledge no bytes, or take none (Linux). A silent connection is
/// probed after a minute.
///
/// Beyond it: the connection is closed.
pub const PEER_SILENT: Duration = Duration::from_secs(75);
/// Client connections at the same time, or fewer at a low limit of open files. Each may need
/// another descriptor for its connection to an origin.
///
/// Beyond it: the oldest one without an accepted request is closed, or the new one waits.
///
/// Listeners: proxy, route.
pub const CONNECTIONS: usize = 50_000;
/// Connections to the admin port at the same time, or fewer at a low limit of open files. At least
/// 4 are allowed.
///
/// Beyond it: the oldest one without an accepted request is closed, or the new one waits.
///
/// Listeners: admin.
pub const ADMIN_CONNECTIONS: usize = 256;
/// File descriptors that are reserved for listeners, databases, files and the log.
///
/// Beyond it: connections never use them.
pub const RESERVED_FILES: usize = 128;
/// Divisor of the connections that one address beyond loopback may hold. An IPv6 address counts by
/// its /64.
///
/// Beyond it: its oldest connection without an accepted request is closed, or the new one.
///
/// Listeners: proxy, route, admin.
pub const ADDRESS_SHARE: usize = 2;
/// Connections per second of one address beyond loopback that are accepted.
///
/// Beyond it: further ones are closed at once.
pub const ADDRESS_ACCEPTS: u32 = 1000;
/// Period in which [`ADDRESS_ACCEPTS`] are counted for each address.
pub const ACCEPT_PERIOD: Duration = Duration::from_secs(1);
/// Time for which the end of the process waits for each of its two log outputs.
///
/// Beyond it: the remaining lines are dropped and counted.
pub const LOG_CLOSE: Duration = Duration::from_millis(500);
/// Bytes of log lines that may wait for a slow log reader, on each output.
///
/// Beyond it: further lines are dropped and counted.
pub const LOG_BACKLOG: usize = 8 * 1024 * 1024;
/// Period in which [`RECORD_REPEATS`] and [`EVENT_REPEATS`] are counted, and after which a summary
/// reports the lines that were left out.
pub const LOG_REPEAT_PERIOD: Duration = Duration::from_secs(10);
/// Canonical lines of one reason and address without credentials in 10 s.
///
/// Beyond it: further ones are counted in a summary line.
pub const RECORD_REPEATS: u32 = 100;
/// Warnings of one cause and target in 10 s.
///
/// Beyond it: further ones are counted in a summary.
pub const EVENT_REPEATS: u32 = 1;
/// Bytes of `OUTPACE_LOG`, the levels of the events.
///
/// Beyond it: the start is refused (64).
pub const LOG_LEVELS_TEXT: usize = 1024;
/// Time between two reads of a changed configuration file, which must be equal.
///
/// Beyond it: a file that has changed again is read again.
pub const CONFIG_SETTLE: Duration = Duration::from_millis(250);
/// Reads of a configuration file that keeps changing.
///
/// Beyond it: a reload by a signal or a call fails, and the next look takes the file.
pub const CONFIG_READS: usize = 21;
/// Calls to reload the configuration that may wait for the one before them.
pub const RELOAD_CALLS: usize = 4;
/// Silent replicas that a heartbeat reports to each other replica.
///
/// Beyond it: further ones are not named in the log and in the status. Their shares stay reserved.
pub const PEERS_REPORTED: usize = 100;
/// Lanes with waiting requests that a replica reports with its heartbeat, the longest first.
///
/// Beyond it: the requests of further lanes are reported as one sum.
pub const LANES_REPORTED: usize = 64;
