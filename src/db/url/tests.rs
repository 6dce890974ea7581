//! Parts, parameters and secrecy of database URLs.

use proptest::prelude::*;

use super::*;
use crate::bounds::DATABASE_CONNECT_MAX;
use crate::db::{Database, DatabaseSource};

fn parse(text: &str) -> Result<DatabaseUrl, UrlError> {
    DatabaseUrl::parse(text)
}

#[test]
fn a_url_names_hosts_user_password_and_database() {
    for (text, place, user, password) in [
        ("postgres://u:p@h/d", "h:5432/d", "u", Some("p")),
        ("postgresql://u@h:1/d", "h:1/d", "u", None),
        (
            "postgres://u:p%40%2f%3a%25@[::1]:7/a%20b",
            "[::1]:7/a b",
            "u",
            Some("p@/:%"),
        ),
        (
            "postgres://u:a:b@h1:1,h2,h3:3/d",
            "h1:1,h2:5432,h3:3/d",
            "u",
            Some("a:b"),
        ),
        (
            "postgres://%2Frun%2Fpg:9/d?user=u&password=p+q",
            "/run/pg:9/d",
            "u",
            Some("p+q"),
        ),
        (
            "postgres:///d?host=h1,h2&port=1,2&user=u",
            "h1:1,h2:2/d",
            "u",
            None,
        ),
        ("postgres://u@h1,h2/d?port=9", "h1:9,h2:9/d", "u", None),
    ] {
        let url = parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(url.place(), place, "{text}");
        assert_eq!(url.user.as_deref(), Some(user), "{text}");
        assert_eq!(
            url.password.as_ref().map(Secret::reveal),
            password,
            "{text}"
        );
        let options = url.options(0);
        assert_eq!(options.get_username(), user, "{text}");
        assert_eq!(options.get_database(), url.database.as_deref(), "{text}");
    }
}

#[test]
fn each_parameter_has_an_effect_or_is_an_error() {
    for (query, cause) in [
        ("pgbouncer=true", "the parameter `pgbouncer` is unknown"),
        ("sslmod=require", "the parameter `sslmod` is unknown"),
        ("keepalives_idle=3&sslmode=disable", "`keepalives_idle`"),
        (
            "channel_binding=require",
            "`channel_binding=require` is not supported",
        ),
        ("channel_binding=yes", "`channel_binding` is unknown"),
        ("sslmode=bogus", "`sslmode` is unknown"),
        ("target_session_attrs=standby", "write read-write"),
        (
            "target_session_attrs=x",
            "`target_session_attrs` is unknown",
        ),
        ("connect_timeout=61", "`connect_timeout` is not"),
        ("connect_timeout=2s", "`connect_timeout` is not"),
        ("port=1,2", "several ports"),
        ("port=0", "a port is not"),
        ("options=bogus", "`options` cannot be read"),
        ("user=a%zz", "percent escape"),
    ] {
        let error = parse(&format!("postgres://u@h/d?{query}")).unwrap_err();
        assert!(error.to_string().contains(cause), "{query}: {error}");
    }
    let url = "postgres://u@h/d?application_name=a&channel_binding=prefer&connect_timeout=7&options=-c%20a%3Db%20--c%3Dd&options[e]=f&sslmode=verify-full&sslrootcert=/nowhere&target_session_attrs=primary";
    let url = parse(url).unwrap();
    let options = url.options(0);
    assert_eq!(options.get_application_name(), Some("a"));
    assert_eq!(options.get_options(), Some("-c a=b -c c=d -c e=f"));
    assert_eq!(url.connect_timeout, Duration::from_secs(7));
    assert_eq!(url.session, SessionKind::Primary);
    assert!(matches!(options.get_ssl_mode(), PgSslMode::VerifyFull));
    let (parameter, path, _) = url.missing_file().unwrap();
    assert_eq!(
        (parameter, path.to_str()),
        ("sslrootcert", Some("/nowhere"))
    );
}

/// Reaches the bound `DATABASE_HOSTS`.
/// Reaches the bound `DATABASE_CONNECT_MAX`.
#[test]
fn hosts_and_the_time_to_connect_are_bounded() {
    let hosts = |count| format!("postgres://u@{}/d", vec!["h"; count].join(","));
    assert_eq!(
        parse(&hosts(DATABASE_HOSTS)).unwrap().hosts(),
        DATABASE_HOSTS
    );
    assert_eq!(
        parse(&hosts(DATABASE_HOSTS + 1)).unwrap_err(),
        UrlError::Hosts
    );
    let longest = DATABASE_CONNECT_MAX.as_secs();
    let timed = |seconds| parse(&format!("postgres://u@h/d?connect_timeout={seconds}"));
    assert_eq!(
        timed(longest).unwrap().connect_timeout,
        DATABASE_CONNECT_MAX
    );
    assert!(timed(longest + 1).is_err());
    assert_eq!(timed(0).unwrap().connect_timeout, DATABASE_CONNECT_TIMEOUT);
}

#[test]
fn p10_closed_a_connection_beyond_this_machine_is_encrypted_unless_the_url_says_otherwise() {
    let mode = |url: &str, index| parse(url).unwrap().options(index).get_ssl_mode();
    for remote in ["db", "10.0.0.1", "[2001:db8::1]", "localhost.example"] {
        let required = mode(&format!("postgres://u@{remote}/d"), 0);
        assert!(matches!(required, PgSslMode::Require), "{remote}");
        let disabled = mode(&format!("postgres://u@{remote}/d?sslmode=disable"), 0);
        assert!(matches!(disabled, PgSslMode::Disable), "{remote}");
        let preferred = mode(&format!("postgres://u@{remote}/d?sslmode=prefer"), 0);
        assert!(matches!(preferred, PgSslMode::Prefer), "{remote}");
    }
    for local in ["localhost", "127.0.0.9", "[::1]", "%2Frun%2Fpg"] {
        let preferred = mode(&format!("postgres://u@{local}/d"), 0);
        assert!(matches!(preferred, PgSslMode::Prefer), "{local}");
    }
    let mixed = "postgres://u@localhost,db/d";
    assert!(matches!(mode(mixed, 0), PgSslMode::Prefer));
    assert!(matches!(mode(mixed, 1), PgSslMode::Require));
}

#[test]
fn of_several_hosts_one_must_accept_writes() {
    let session = |url: &str| parse(url).unwrap().session;
    assert_eq!(session("postgres://u@h/d"), SessionKind::Any);
    assert_eq!(session("postgres://u@a,b/d"), SessionKind::ReadWrite);
    let primary = "postgres://u@a,b/d?target_session_attrs=primary";
    assert_eq!(session(primary), SessionKind::Primary);
}

#[test]
fn a_password_file_has_a_line_for_the_host() {
    let text = "# a comment\nh2:*:*:*:other\nh:1:d:u:a\\:b\\\\c\n*:*:*:*:last";
    for (url, password) in [
        ("postgres://u@h:1/d", "a:b\\c"),
        ("postgres://u@h2/x", "other"),
        ("postgres://u@h:2/d", "last"),
    ] {
        let url = parse(url).unwrap();
        let user = url.user.as_deref().unwrap();
        let found = password_of(text, &url.hosts[0], user, url.database.as_deref());
        assert_eq!(found.as_ref().map(Secret::reveal), Some(password));
    }
    assert!(
        password_of(
            "x:1:d:u:p",
            &parse("postgres://u@h/d").unwrap().hosts[0],
            "u",
            None
        )
        .is_none()
    );
}

/// Password of letters that no message has, with special characters between them.
fn password() -> impl Strategy<Value = String> {
    let part = (
        proptest::char::ranges(vec!['Q'..='Q', 'X'..='X', 'Z'..='Z', '7'..='9'].into()),
        proptest::sample::select(vec![
            "@", "/", ":", "?", "#", "%", "&", "=", "+", "[", "]", ",", "%41", "%zz", " ", "ü", "",
        ]),
    );
    proptest::collection::vec(part, 3..12).prop_map(|parts| {
        parts
            .into_iter()
            .map(|(letter, special)| format!("{letter}{letter}{special}"))
            .collect()
    })
}

/// Text after the user information, or the whole address with `PASSWORD` in its query.
fn address() -> impl Strategy<Value = &'static str> {
    proptest::sample::select(vec![
        "user:PASSWORD@host/base",
        "user:PASSWORD@host:5432/base?sslmode=require",
        "user:PASSWORD@[::1]:5432/base",
        "user:PASSWORD@[fe80::1]/base?connect_timeout=3",
        "user:PASSWORD@host:1,other:2,third/base?target_session_attrs=read-write",
        "user:PASSWORD@%2Frun%2Fpostgresql/base",
        "user:PASSWORD@/base?host=/run/postgresql",
        "user:PASSWORD@host/base?unknown=1",
        "user:PASSWORD@host",
        "host/base?user=user&password=PASSWORD",
        "host/base?password=PASSWORD&user=user",
        ":PASSWORD@host/base",
    ])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, ..ProptestConfig::default() })]

    #[test]
    fn p10_closed_no_piece_of_a_password_is_in_any_output(
        password in password(),
        address in address(),
        is_escaped in any::<bool>(),
    ) {
        let written = match is_escaped {
            true => utf8_percent_encode(&password, NON_ALPHANUMERIC).to_string(),
            false => password.clone(),
        };
        let text = format!("postgres://{}", address.replace("PASSWORD", &written));
        let secret = Secret::new(text.as_str());
        let source = DatabaseSource::new(secret.clone(), None);
        let mut output = format!("{source:?} {:?}", check_url(&secret));
        match Database::new(&secret, 2, None) {
            Ok(database) => output += &format!("{database:?} {}", database.place()),
            Err(error) => output += &format!("{error} {error:?}"),
        }
        match parse(&text) {
            Ok(url) => output += &format!("{url:?}"),
            Err(error) => output += &format!("{error} {error:?}"),
        }
        for text in [&password, &written] {
            let pieces = text.as_bytes().windows(4);
            let told = output.as_bytes();
            for piece in pieces {
                let is_there = told.windows(4).any(|window| window == piece);
                prop_assert!(!is_there, "{:?} is in {output}", String::from_utf8_lossy(piece));
            }
        }
        if is_escaped && !address.contains("unknown") {
            let url = parse(&text).unwrap();
            prop_assert_eq!(url.password.as_ref().map(Secret::reveal), Some(password.as_str()));
        }
    }
}
