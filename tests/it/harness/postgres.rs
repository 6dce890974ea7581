//! Throw-away Postgres server with its own cluster and its own port, removed after the test.
//! Postgres refuses to run as root, so under root the server runs as an unprivileged user.

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::{Identity, free_port, soon};

pub(crate) struct Postgres {
    dir: tempfile::TempDir,
    pub(crate) port: u16,
    user: Option<(u32, u32)>,
    server: Option<Child>,
    /// Value of the server setting `fsync`. Tests use `off` because their data need not survive a
    /// power loss.
    fsync: &'static str,
}

/// Returns the path of a Postgres program on `PATH`, in `/usr/sbin` or in the directory of the
/// packages. Panics with advice if the program is not installed.
fn tool(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut path = path;
    path.push(":/usr/sbin");
    let on_path = std::env::split_paths(&path).map(|dir| dir.join(name));
    let packaged = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten();
    let packaged = packaged
        .flatten()
        .map(|version| version.path().join("bin").join(name));
    on_path
        .chain(packaged)
        .find(|path| path.exists())
        .unwrap_or_else(|| panic!("`{name}` is not installed; `./test` installs it"))
}

/// Returns the user id and group id of an unprivileged user if the tests run as root, otherwise
/// `None`.
fn somebody() -> Option<(u32, u32)> {
    use std::os::unix::fs::MetadataExt as _;
    let own = std::fs::metadata("/proc/self").unwrap().uid();
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let id = |name: &str| {
        let line = passwd
            .lines()
            .find(|line| line.starts_with(&format!("{name}:")))?;
        let mut fields = line.split(':').skip(2);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    (own == 0).then(|| {
        id("postgres")
            .or_else(|| id("nobody"))
            .expect("/etc/passwd should list `postgres` or `nobody`")
    })
}

/// Starts a server process and waits until a line of its standard error contains `says`. Panics if
/// the process ended instead.
async fn started(mut command: Command, says: &'static str) -> Child {
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let log = BufReader::new(child.stderr.take().unwrap());
    let (tell, told) = tokio::sync::oneshot::channel();
    // The thread reads the log to its end because a full pipe would stop the server.
    std::thread::spawn(move || {
        let mut lines = log.lines().map_while(Result::ok);
        let read: Vec<String> = lines
            .by_ref()
            .take_while(|line| !line.contains(says))
            .collect();
        let _ = tell.send(read);
        lines.for_each(drop);
    });
    let read = soon(says, told).await.unwrap();
    let ended = child.try_wait().unwrap();
    assert!(ended.is_none(), "the server ended ({ended:?}): {read:#?}");
    child
}

impl Postgres {
    /// Creates a cluster in the temporary directory and starts its server with `fsync` off.
    pub(crate) async fn start() -> Self {
        Self::start_in(&std::env::temp_dir(), "off").await
    }

    /// Works like [`Self::start`], but below a directory that every user may enter and with a
    /// chosen `fsync`.
    pub(crate) async fn start_in(parent: &Path, fsync: &'static str) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("outpace-pg")
            .tempdir_in(parent)
            .unwrap();
        let user = somebody();
        if let Some((uid, gid)) = user {
            chown(dir.path(), Some(uid), Some(gid)).unwrap();
        }
        let mut postgres = Self {
            port: free_port(),
            user,
            dir,
            server: None,
            fsync,
        };
        let made = postgres
            .command("initdb")
            .args([
                "--username=outpace",
                "--auth=trust",
                "--encoding=UTF8",
                "--locale=C",
                "--no-sync",
            ])
            .arg("-D")
            .arg(postgres.data())
            .output()
            .unwrap();
        assert!(
            made.status.success(),
            "{}",
            String::from_utf8_lossy(&made.stderr)
        );
        postgres.run().await;
        postgres
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(tool(name));
        if let Some((uid, gid)) = self.user {
            command.uid(uid).gid(gid);
        }
        command.current_dir(Path::new("/")).stdin(Stdio::null());
        command
    }

    /// Starts PgBouncer in transaction mode in front of the server. The process is killed when the
    /// returned value is dropped.
    pub(crate) async fn pooler(&self) -> Pooler {
        let port = free_port();
        let dir = self.dir.path();
        std::fs::write(dir.join("users.txt"), "\"outpace\" \"\"\n").unwrap();
        let config = format!(
            "[databases]\n* = host=127.0.0.1 port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = trust\nauth_file = {}\npool_mode = transaction\n",
            self.port,
            dir.join("users.txt").display()
        );
        std::fs::write(dir.join("pooler.ini"), config).unwrap();
        let mut command = self.command("pgbouncer");
        command.arg(dir.join("pooler.ini"));
        let child = started(command, "process up").await;
        Pooler { child, port }
    }

    /// Starts the server on the existing cluster and waits until its log reports readiness.
    pub(crate) async fn run(&mut self) {
        let mut command = self.command("postgres");
        command
            .arg("-D")
            .arg(self.data())
            .args(["-p", &self.port.to_string(), "-k", "", "-h", "127.0.0.1"])
            .args([
                "-c",
                &format!("fsync={}", self.fsync),
                "-c",
                "max_connections=200",
                "-c",
                if self.fsync == "on" {
                    "shared_buffers=128MB"
                } else {
                    "shared_buffers=16MB"
                },
                "-c",
                "min_wal_size=2GB",
                "-c",
                "max_wal_size=8GB",
            ]);
        self.server = Some(started(command, "ready to accept connections").await);
    }

    pub(crate) async fn connect(&self) -> Result<sqlx::PgConnection, sqlx::Error> {
        use sqlx::Connection as _;
        sqlx::PgConnection::connect(&self.url()).await
    }

    /// Waits until each of `replicas` replicas has its part of every limit for an outage.
    pub(crate) async fn has_equal_shares(&self, replicas: i64) {
        let mut connection = self.connect().await.unwrap();
        let query = "select count(*) from outpace.replica where share_ppm = $1";
        soon("the fallback shares", async {
            while sqlx::query_scalar::<_, i64>(query)
                .bind(1_000_000 / replicas)
                .fetch_one(&mut connection)
                .await
                .unwrap()
                < replicas
            {}
        })
        .await;
    }

    pub(crate) fn url(&self) -> String {
        self.url_by(self.port)
    }

    /// Returns the URL of another database of the cluster for another user, such as
    /// `user:password`.
    pub(crate) fn url_of(&self, user: &str, database: &str) -> String {
        format!("postgres://{user}@127.0.0.1:{}/{database}", self.port)
    }

    /// Executes SQL statements in a database of the cluster as its superuser.
    pub(crate) async fn execute(&self, database: &str, sql: &str) {
        use sqlx::Connection as _;
        let url = self.url_of("outpace", database);
        let mut connection = sqlx::PgConnection::connect(&url).await.unwrap();
        let sql = sqlx::AssertSqlSafe(sql.to_owned());
        let done = sqlx::raw_sql(sql).execute(&mut connection).await;
        done.unwrap_or_else(|error| panic!("{database}: {error}"));
    }

    /// Lets this user connect only with its password. The server applies this to new connections.
    pub(crate) async fn require_password(&self, user: &str) {
        let path = self.data().join("pg_hba.conf");
        let rest = std::fs::read_to_string(&path).unwrap();
        let line = format!("host all {user} 127.0.0.1/32 scram-sha-256\n");
        std::fs::write(&path, line + &rest).unwrap();
        self.execute("postgres", "select pg_reload_conf()").await;
    }

    /// Makes a certificate of a CA of its own, and returns the path of that CA's certificate.
    pub(crate) fn make_certificate(&self, name: &str) -> PathBuf {
        let identity = Identity::new(vec!["127.0.0.1".to_owned()]);
        self.write(&format!("{name}.pem"), &identity.cert);
        self.write(&format!("{name}.key"), &identity.key());
        self.write(&format!("{name}-ca.pem"), &identity.ca)
    }

    /// Writes a file that only the server may read.
    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        if let Some((uid, gid)) = self.user {
            chown(&path, Some(uid), Some(gid)).unwrap();
        }
        path
    }

    /// Makes the server present a certificate to new connections. Files are exchanged rather than
    /// settings, so that the change is quick.
    pub(crate) async fn present_certificate(&self, name: &str) {
        for end in ["pem", "key"] {
            let text = std::fs::read_to_string(self.dir.path().join(format!("{name}.{end}")));
            self.write(&format!("server.{end}"), &text.unwrap());
        }
        self.execute("postgres", "select pg_reload_conf()").await;
    }

    /// Switches TLS on at the server, with a certificate that was made before.
    pub(crate) async fn switch_tls_on(&self, name: &str) {
        for (setting, end) in [("ssl_cert_file", "pem"), ("ssl_key_file", "key")] {
            let path = self.dir.path().join(format!("server.{end}"));
            let sql = format!("alter system set {setting} = '{}'", path.display());
            self.execute("postgres", &sql).await;
        }
        self.execute("postgres", "alter system set ssl = on").await;
        self.present_certificate(name).await;
    }

    /// Returns the URL of the same database through another port, such as that of a pooler.
    pub(crate) fn url_by(&self, port: u16) -> String {
        format!("postgres://outpace@127.0.0.1:{port}/postgres")
    }

    /// Stops the server immediately and without a checkpoint (SIGQUIT), so that it recovers as
    /// after a crash.
    pub(crate) fn crash(&mut self) {
        self.end("QUIT");
    }

    fn end(&mut self, signal: &str) {
        if let Some(mut server) = self.server.take() {
            let _ = Command::new("kill")
                .args(["-s", signal, &server.id().to_string()])
                .status();
            let _ = server.wait();
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.end("QUIT");
    }
}

/// Running PgBouncer process, which is killed when this value is dropped.
pub(crate) struct Pooler {
    child: Child,
    pub(crate) port: u16,
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
