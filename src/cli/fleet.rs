//! `outpace status --fleet`: prints the replicas that share a ledger.

use serde_json::Value;

use super::status::{array, text};
use super::table::table;

/// Formats the answer of `GET /v1/replicas`.
pub(super) fn shown(told: &Value) -> String {
    let mut rows = array(told, "replicas").to_vec();
    for row in &mut rows {
        let waiting = array(row, "waiting").iter().map(|lane| {
            let name = match (text(lane, "target"), text(lane, "lane")) {
                ("", _) => "others".to_owned(),
                (target, "") => target.to_owned(),
                (target, lane) => format!("{target}/{lane}"),
            };
            format!("{name} {}", lane["waiting"])
        });
        let waiting: Vec<String> = waiting.collect();
        row["waits"] = match waiting.is_empty() {
            true => "0".into(),
            false => waiting.join(", ").into(),
        };
        if row["self"] == true {
            row["replica"] = format!("{} (this one)", text(row, "replica")).into();
        }
        row["part"] = row["share"].as_f64().map(percent).into();
    }
    let columns = "REPLICA /replica, STATE /state, VERSION /version, CONFIG /config, \
        LEDGER /ledger, WAITING /waits, LAST HEARTBEAT /last_heartbeat, SHARE /part, \
        RESERVED UNTIL /reserved_until";
    let mut shown = table(&rows, columns);
    match text(told, "error") {
        "" => {}
        error => shown.push_str(&format!("\nwarning: {error}\n")),
    }
    if told["shared"] == false {
        shown.push_str("\nthe ledger is in memory, so no other replica shares it\n");
    }
    if let Some(2..) = told["configurations"].as_u64() {
        let count = &told["configurations"];
        shown.push_str(&format!(
            "\nwarning: {count} configurations are in use; the strictest numbers of each limit apply\n"
        ));
    }
    shown
}

/// Formats the part of a status about other replicas, as warnings.
pub(super) fn warnings(status: &Value) -> String {
    let Some(fleet) = status.get("fleet").filter(|fleet| fleet.is_object()) else {
        return String::new();
    };
    let mut shown = String::new();
    for peer in array(fleet, "silent") {
        shown.push_str(&format!(
            "\nwarning: replica {} is silent since {}; {} of each rate is reserved for it until {}\n",
            text(peer, "replica"),
            text(peer, "last_heartbeat"),
            peer["share"].as_f64().map(percent).unwrap_or_default(),
            text(peer, "reserved_until"),
        ));
    }
    if let Some(2..) = fleet["configurations"].as_u64() {
        shown.push_str(
            "\nwarning: replicas have different configurations; see `outpace status --fleet`\n",
        );
    }
    shown
}

fn percent(share: f64) -> String {
    format!("{} %", (share * 1e4).round() / 1e2)
}
