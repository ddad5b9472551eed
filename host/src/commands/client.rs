//! The commands that act on a fleet that runs already.

use std::io::{self, Write};

use futures_util::{StreamExt, stream};
use serde_json::{Value, json};

use super::printing;
use crate::cli::{Act, Add, Console, Exec, Ids, Logs, Ps, Which};
use crate::client::{Client, ClientError, block_on, exec};
use crate::console::escape;
use crate::console::terminal::{self, RawMode};
use crate::engine::Control;
use crate::exit::{Code, Error, sentence};
use crate::report::print_json;

/// VMs in one answer.
const PAGE: u64 = 1000;
/// VMs that are acted on at a time.
const SIDE_BY_SIDE: usize = 32;

fn run<T>(work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    block_on(work).map_err(|e| Error::io("talk to the fleet", e))?
}

fn print(bytes: &[u8]) -> Result<(), Error> {
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(printing)
}

/// `pxvm ps`
pub fn ps(args: Ps) -> Result<Code, Error> {
    let Ps { state, which: Which { fleet, json } } = args;
    let client = Client::find(fleet.as_deref())?;
    let (fleet, vms) = run(async {
        let mut fleet = client.get("/api/v1/fleet").await?;
        // Only asked for when somebody draws it.
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
        print(table(&fleet, &vms).as_bytes())?;
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
        let mut vms = Vec::new();
        for ids in ids {
            match ids {
                Ids::All => vms.extend(0..count),
                // One that is missing is told once, however long the range.
                Ids::Range(first, last) => vms.extend(first..=last.min(count.max(first))),
            }
        }
        vms.sort_unstable();
        vms.dedup();
        let act = |vm: u32| {
            let (client, path) = (&client, format!("/api/v1/vms/{vm}/{what}"));
            async move { (vm, client.post(&path, None).await) }
        };
        let done: Vec<_> = stream::iter(vms).map(act).buffered(SIDE_BY_SIDE).collect().await;
        Ok(done)
    })?;
    let mut code = Code::Success;
    let (mut vms, mut errors) = (Vec::new(), Vec::new());
    for (vm, result) in done {
        match result {
            Ok(about) => {
                if !json {
                    let state = about["state"].as_str().unwrap_or("?");
                    print(format!("vm{vm} is {state}\n").as_bytes())?;
                }
                vms.push(about);
            }
            Err(error) => {
                code = if code == Code::Success { error.code() } else { code };
                if !json {
                    eprintln!("pxvm: {}", sentence(&error));
                }
                errors.push(json!({ "id": vm, "message": sentence(&error) }));
            }
        }
    }
    if json {
        print_json(&json!({ "vms": vms, "errors": errors })).map_err(printing)?;
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
    print(text.as_bytes())?;
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
                match print(&bytes) {
                    // Whoever reads it has enough.
                    Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::BrokenPipe => {
                        break;
                    }
                    result => result?,
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
        print(&bytes)
    })?;
    Ok(Code::Success)
}

/// `pxvm exec`
pub fn exec(args: Exec) -> Result<Code, Error> {
    let Exec { id, command, timeout, which: Which { fleet, json } } = args;
    let client = Client::find(fleet.as_deref())?;
    let command = command.join(" ");
    let mut output = Vec::new();
    let mut broken = None;
    let status = run(async {
        let take = |bytes: &[u8]| {
            if json {
                output.extend_from_slice(bytes);
            } else if let Err(error) = print(bytes) {
                // The command goes on in any case.
                broken.get_or_insert(error);
            }
            Ok(())
        };
        Ok(exec::run(&client, id, &command, timeout, take).await?)
    })?;
    if json {
        let output = String::from_utf8_lossy(&output);
        print_json(&json!({ "id": id, "status": status, "output": output })).map_err(printing)?;
    }
    match broken {
        Some(error) => Err(error),
        None => Ok(Code::Status(status)),
    }
}

/// `pxvm console`
pub fn console(args: Console) -> Result<Code, Error> {
    let Console { id, fleet } = args;
    let client = Client::find(fleet.as_deref())?;
    let interactive = terminal::is_interactive();
    let (keys, typed) = crossbeam_channel::unbounded();
    let (leave, left) = tokio::sync::oneshot::channel();
    let keyboard = client.clone();
    // What is refused is told before the terminal is changed.
    run(async { Ok(client.get(&format!("/api/v1/vms/{id}")).await?) })?;
    if interactive {
        eprintln!("pxvm: Ctrl-A x leaves, Ctrl-A h helps");
    }
    let raw = interactive.then(RawMode::enter).transpose();
    let raw = raw.map_err(|e| Error::io("set up the terminal", e))?;
    terminal::read_input(keys, interactive).map_err(|e| Error::io("read standard input", e))?;
    let type_all = move || {
        for control in typed {
            match control {
                Control::Input(bytes) => {
                    let sent = block_on(keyboard.type_at(id, &bytes));
                    if let Ok(Err(error)) = sent {
                        eprint!("\r\npxvm: {}\r\n", sentence(&error));
                    }
                }
                Control::Help => eprint!("{}", escape::HELP_ATTACHED),
                _ => break,
            }
        }
        // Only a person leaves; the end of a pipe is not the end of the guest.
        if interactive {
            let _ = leave.send(());
        } else {
            std::mem::forget(leave);
        }
    };
    std::thread::Builder::new()
        .name("keyboard".into())
        .spawn(type_all)
        .map_err(|e| Error::io("read the keyboard", e))?;
    let left = run(async {
        let mut follow = client.follow(id).await?;
        let show = async {
            while let Some(bytes) = follow.next().await {
                print(&bytes)?;
            }
            Ok::<_, Error>(false)
        };
        tokio::select! {
            shown = show => shown,
            _ = left => Ok(true),
        }
    })?;
    drop(raw);
    if interactive {
        let how = if left { "left the console" } else { "the fleet has ended" };
        eprintln!("\npxvm: {how}");
    }
    Ok(Code::Success)
}
