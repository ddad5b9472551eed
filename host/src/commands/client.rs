//! Client commands: those that act on a fleet that runs already.

use std::io::Write;
use std::sync::Arc;

use axum::http::StatusCode;
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::printing;
use crate::cli::{Act, Add, Console, Exec, Ids, Logs, Ps, Which};
use crate::client::{Client, ClientError, block_on, exec};
use crate::console::escape::{self, Action};
use crate::console::keyboard::{self, Typed};
use crate::console::terminal::{self, RawMode};
use crate::exit::{Code, Error, sentence};
use crate::progress::Stderr;
use crate::report::print_json;
use crate::signals;
use crate::stdio::{print, say};

/// VMs in one response.
const PAGE: u64 = 1000;
/// VMs on which commands are executed at a time.
const SIDE_BY_SIDE: usize = 32;
/// Output of a command that is kept for the report.
const OUTPUT_MAX: usize = 16 << 20;
/// Bytes of console input that are sent at a time.
const TYPED_AT_ONCE: usize = 4096;

fn run<T>(work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    block_on(work).map_err(|e| Error::io("talk to the fleet", e))?
}

/// `pxvm ps`
pub fn ps(args: Ps) -> Result<Code, Error> {
    let Ps { state, which: Which { fleet, json } } = args;
    let client = Client::find(fleet.as_deref())?;
    let (fleet, vms) = run(async {
        let mut fleet = client.get("/api/v1/fleet").await?;
        // The history is needed only where it is drawn.
        fleet.as_object_mut().and_then(|fleet| fleet.remove("history"));
        let state = state.map(|state| format!("&state={state}")).unwrap_or_default();
        let mut vms = Vec::new();
        loop {
            let offset = vms.len();
            let path = format!("/api/v1/vms?limit={PAGE}&offset={offset}{state}");
            let mut page = client.get(&path).await?;
            let Value::Array(some) = page["vms"].take() else {
                return Err(ClientError::Strange.into());
            };
            let last = some.is_empty();
            vms.extend(some);
            if last || vms.len() as u64 >= page["total"].as_u64().unwrap_or(0) {
                return Ok((fleet, vms));
            }
        }
    })?;
    if json {
        print_json(&json!({ "fleet": fleet, "vms": vms })).map_err(printing)?;
    } else {
        print(table(&fleet, &vms).as_bytes()).map_err(printing)?;
    }
    Ok(Code::Success)
}

fn table(fleet: &Value, vms: &[Value]) -> String {
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    };
    let mut out = format!(
        "{}: {} of {} machines on {}, {} MIPS, up {:.0} s\n",
        text(&fleet["name"]),
        text(&fleet["count"]),
        text(&fleet["capacity"]),
        text(if fleet["device"].is_null() { &fleet["backend"] } else { &fleet["device"] }),
        text(&fleet["mips"]),
        fleet["uptime_seconds"].as_f64().unwrap_or_default(),
    );
    out += &format!(
        "{:<8} {:<8} {:>8} {:>14} {:>6} {:>8} {:>8}  {}\n",
        "NAME", "STATE", "MIPS", "INSTRUCTIONS", "RESETS", "RX", "TX", "ADDRESS"
    );
    for vm in vms {
        let published: Vec<String> =
            vm["published"].as_array().into_iter().flatten().map(text).collect();
        let mut place = published.join(" ");
        if !vm["address"].is_null() {
            place = format!("{} {place}", text(&vm["address"]));
        }
        let reason = vm["reason"].as_str().map(|reason| format!("({reason})")).unwrap_or_default();
        let line = format!(
            "{:<8} {:<8} {:>8} {:>14} {:>6} {:>8} {:>8}  {place} {reason}",
            text(&vm["name"]),
            text(&vm["state"]),
            text(&vm["mips"]),
            text(&vm["instret"]),
            text(&vm["resets"]),
            text(&vm["network"]["rx_packets"]),
            text(&vm["network"]["tx_packets"]),
        );
        out += line.trim_end();
        out.push('\n');
    }
    out
}

/// `pxvm pause`, `resume`, `reset` and `stop`: `what` is one of these.
pub fn act(args: Act, what: &str) -> Result<Code, Error> {
    let Act { ids, which: Which { fleet, json } } = args;
    let client = Client::find(fleet.as_deref())?;
    let done = run(async {
        let count = client.get("/api/v1/fleet").await?["count"].as_u64().unwrap_or(0) as u32;
        // VMs that were named must be able to execute the command; `all` means those that are.
        let mut vms = Vec::new();
        for ids in ids {
            let (range, named) = match ids {
                Ids::All => (0..count, false),
                // A missing VM is reported once, however long the range.
                Ids::Range(first, last) => {
                    (first..last.min(count.max(first)).saturating_add(1), true)
                }
            };
            vms.extend(range.map(|vm| (vm, named)));
        }
        vms.sort_unstable_by_key(|&(vm, named)| (vm, !named));
        vms.dedup_by_key(|&mut (vm, _)| vm);
        let act = |(vm, named): (u32, bool)| {
            let (client, path) = (&client, format!("/api/v1/vms/{vm}/{what}"));
            async move { (vm, named, client.post(&path, None).await) }
        };
        let done: Vec<_> = stream::iter(vms).map(act).buffered(SIDE_BY_SIDE).collect().await;
        Ok(done)
    })?;
    let mut code = Code::Success;
    let (mut vms, mut errors, mut skipped) = (Vec::new(), Vec::new(), Vec::new());
    for (vm, named, result) in done {
        match result {
            Ok(about) => {
                if !json {
                    let state = about["state"].as_str().unwrap_or("?");
                    print(format!("vm{vm} is {state}\n").as_bytes()).map_err(printing)?;
                }
                vms.push(about);
            }
            Err(ClientError::Refused { status: StatusCode::CONFLICT, .. }) if !named => {
                skipped.push(vm);
            }
            Err(error) => {
                code = if code == Code::Success { error.code() } else { code };
                if !json {
                    say(&format!("pxvm: {}", sentence(&error)));
                }
                errors.push(json!({ "id": vm, "message": sentence(&error) }));
            }
        }
    }
    if json {
        let report = json!({ "vms": vms, "errors": errors, "skipped": skipped });
        print_json(&report).map_err(printing)?;
    } else if !skipped.is_empty() {
        let machines = if skipped.len() == 1 { "machine" } else { "machines" };
        say(&format!("pxvm: skipped {} {machines} that cannot {what} now", skipped.len()));
    }
    Ok(code)
}

/// `pxvm add`
pub fn add(args: Add) -> Result<Code, Error> {
    let Add { count, which: Which { fleet, json } } = args;
    let client = Client::find(fleet.as_deref())?;
    let body = json!({ "count": count });
    let added = run(async { Ok(client.post("/api/v1/vms", Some(&body)).await?) })?;
    if json {
        print_json(&added).map_err(printing)?;
        return Ok(Code::Success);
    }
    let ids = added["ids"].as_array().ok_or(ClientError::Strange)?;
    let text = match &ids[..] {
        [one] => format!("vm{one} starts\n"),
        [first, .., last] => format!("vm{first} to vm{last} start\n"),
        [] => String::new(),
    };
    print(text.as_bytes()).map_err(printing)?;
    Ok(Code::Success)
}

/// `pxvm logs`
pub fn logs(args: Logs) -> Result<Code, Error> {
    let Logs { id, follow, which: Which { fleet, json } } = args;
    let client = Client::find(fleet.as_deref())?;
    run(async {
        if follow {
            let mut follow = client.follow(id).await?;
            while let Some(bytes) = follow.next().await {
                if !print(&bytes).map_err(printing)? {
                    break;
                }
            }
            return Ok(());
        }
        let (offset, bytes) = client.console(id).await?;
        if json {
            let text = String::from_utf8_lossy(&bytes);
            return print_json(&json!({ "id": id, "offset": offset, "text": text }))
                .map_err(printing);
        }
        print(&bytes).map(drop).map_err(printing)
    })?;
    Ok(Code::Success)
}

/// `pxvm exec`
pub fn exec(args: Exec) -> Result<Code, Error> {
    let Exec { id, command, timeout, prompt, which: Which { fleet, json } } = args;
    let client = Client::find(fleet.as_deref())?;
    let command = command.join(" ");
    let (mut output, mut truncated) = (Vec::new(), false);
    let mut broken = None;
    let interrupt = Arc::new(Notify::new());
    let ring = Arc::clone(&interrupt);
    let mut signals = 0;
    signals::on_interrupt(move || {
        signals += 1;
        if signals > 1 {
            say(&format!("pxvm: interrupted; the command may go on in vm{id}"));
            signals::end();
        }
        ring.notify_one();
    });
    let options = exec::Options { timeout, prompt, interrupt: &interrupt };
    let status = run(async {
        let take = |bytes: &[u8]| {
            if json {
                let room = OUTPUT_MAX - output.len();
                truncated |= bytes.len() > room;
                output.extend_from_slice(&bytes[..bytes.len().min(room)]);
            } else if let Err(error) = print(bytes) {
                // The command goes on in any case.
                broken.get_or_insert(error);
            }
            Ok(())
        };
        Ok(exec::run(&client, id, &command, options, take).await?)
    })?;
    if json {
        let output = String::from_utf8_lossy(&output);
        let mut report = json!({ "id": id, "status": status, "output": output });
        if truncated {
            report["truncated"] = true.into();
        }
        print_json(&report).map_err(printing)?;
    }
    match broken {
        Some(error) => Err(printing(error)),
        None => Ok(Code::Status(status)),
    }
}

/// `pxvm console`
pub fn console(args: Console) -> Result<Code, Error> {
    let Console { id, fleet } = args;
    let client = Client::find(fleet.as_deref())?;
    let interactive = terminal::is_interactive();
    // A refusal is printed before the terminal's mode is changed.
    run(async { Ok(client.get(&format!("/api/v1/vms/{id}")).await?) })?;
    if interactive {
        say("pxvm: Ctrl-A x leaves, Ctrl-A h helps");
    }
    let (ender, mut end) = tokio::sync::mpsc::channel(1);
    let on_signal = ender.clone();
    signals::on_interrupt(move || {
        let _ = on_signal.try_send(Code::Interrupted);
    });
    let raw = interactive.then(RawMode::enter).transpose();
    let raw = raw.map_err(|e| Error::io("set up the terminal", e))?;
    let act = move |action| match action {
        Action::Leave => {
            let _ = ender.try_send(Code::Success);
        }
        Action::Help => {
            let _ = Stderr.write_all(escape::HELP_ATTACHED.as_bytes());
        }
    };
    let typed =
        keyboard::read(interactive, act).map_err(|e| Error::io("read standard input", e))?;
    let typist = client.clone();
    std::thread::Builder::new()
        .name("keyboard".into())
        .spawn(move || type_all(&typist, id, &typed))
        .map_err(|e| Error::io("read the keyboard", e))?;
    let left = run(async {
        let mut follow = client.follow(id).await?;
        let show = async {
            while let Some(bytes) = follow.next().await {
                if !print(&bytes).map_err(printing)? {
                    return Ok(Some(Code::Success));
                }
            }
            Ok(None)
        };
        tokio::select! {
            shown = show => shown,
            // The end of a pipe does not end the console: only a signal or a person does.
            Some(code) = end.recv() => Ok(Some(code)),
        }
    })?;
    drop(raw);
    if interactive {
        let how = if left.is_some() { "left the console" } else { "the fleet has ended" };
        say(&format!("\npxvm: {how}"));
    }
    Ok(left.unwrap_or(Code::Success))
}

/// Sends standard input to the VM, no faster than the VM reads it.
fn type_all(client: &Client, id: u32, typed: &Typed) {
    loop {
        let bytes = typed.take(TYPED_AT_ONCE);
        if !bytes.is_empty() {
            if let Ok(Err(error)) = block_on(client.type_at(id, &bytes)) {
                say(&format!("\r\npxvm: {}\r", sentence(&error)));
            }
        } else if typed.bell.recv().is_err() && typed.is_empty() {
            return;
        }
    }
}
