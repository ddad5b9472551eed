//! `/metrics`: Prometheus metrics of the fleet, and of the VMs that the query selects.

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use serde::Deserialize;

use super::SharedApp;
use super::bodies::Params;
use super::error::ApiError;
use crate::engine::ControlError;

/// Largest number of VMs in a response.
const VMS_MAX: u32 = 1000;

type Labels = Vec<(&'static str, String)>;

/// Query: which VMs have series of their own.
#[derive(Deserialize)]
pub struct MetricsQuery {
    vms: Option<String>,
}

/// Parses `0-15`, `7` or `1,5-8`.
fn ranges(text: &str, count: u32) -> Result<Vec<u32>, ApiError> {
    let wrong = || ApiError::BadRequest("VMs are numbers and ranges, as in 0-15,20".to_owned());
    let mut vms = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| super::bodies::number(text).map_err(|_| wrong());
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(wrong());
        }
        if last >= count {
            return Err(ControlError::UnknownVm { vm: last, count }.into());
        }
        if vms.len() as u64 + u64::from(last - first) >= u64::from(VMS_MAX) {
            return Err(ApiError::BadRequest(format!("at most {VMS_MAX} VMs have series at once")));
        }
        vms.extend(first..=last);
    }
    Ok(vms)
}

/// `GET /metrics`
pub async fn metrics(
    State(app): State<SharedApp>,
    Params(query): Params<MetricsQuery>,
) -> Result<impl IntoResponse, ApiError> {
    let count = app.fleet.state().count();
    let vms = query.vms.map(|text| ranges(&text, count)).transpose()?.unwrap_or_default();
    let mut registry = Registry::with_prefix("pxvm");
    fleet(&app, &mut registry);
    if !vms.is_empty() {
        single(&app, &vms, &mut registry);
    }
    let mut text = String::new();
    encode(&mut text, &registry).map_err(|_| ApiError::Unavailable("no metrics".to_owned()))?;
    const KIND: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, KIND)], text))
}

fn fleet(app: &SharedApp, registry: &mut Registry) {
    let (states, capacity) = {
        let state = app.fleet.state();
        (state.counts(), state.capacity())
    };
    let vms = Family::<Labels, Gauge>::default();
    for (state, n) in states.iter() {
        vms.get_or_create(&vec![("state", state.name().to_owned())]).set(n.into());
    }
    registry.register("vms", "VMs, by state", vms);
    let gauge = |value: u64| {
        let gauge = Gauge::<i64>::default();
        gauge.set(value as i64);
        gauge
    };
    let counter = |value: u64| {
        let counter = Counter::<u64>::default();
        counter.inc_by(value);
        counter
    };
    registry.register("capacity", "VMs that there is room for", gauge(capacity.into()));
    let totals = app.fleet.backend().totals();
    registry.register("instructions", "Instructions retired", counter(totals.instructions));
    let frames = Family::<Labels, Gauge>::default();
    for (kind, n) in [("shared", totals.shared_frames), ("private", totals.private_frames)] {
        frames.get_or_create(&vec![("kind", kind.to_owned())]).set(n.into());
    }
    registry.register("frames", "Frames of 4 KiB in use", frames);
    let network = app.link.total();
    let both = |rx: u64, tx: u64| {
        let family = Family::<Labels, Counter>::default();
        for (direction, n) in [("rx", rx), ("tx", tx)] {
            family.get_or_create(&vec![("direction", direction.to_owned())]).inc_by(n);
        }
        family
    };
    let packets = both(network.rx_packets, network.tx_packets);
    registry.register("packets", "Packets to (rx) and from (tx) guests", packets);
    let bytes = both(network.rx_bytes, network.tx_bytes);
    registry.register("network_bytes", "Bytes of these packets", bytes);
    let drops = counter(network.drops.total());
    registry.register("drops", "Packets that went nowhere", drops);
    if let Some(launches) = app.fleet.backend().launches() {
        registry.register("launches", "Launches on the device", counter(launches.count));
        let us = launches.time.as_micros() as u64;
        registry.register("device_microseconds", "Time that they took there", counter(us));
    }
    let uptime = app.fleet.started().elapsed().as_secs();
    registry.register("uptime_seconds", "Since the fleet was started", gauge(uptime));
}

fn single(app: &SharedApp, vms: &[u32], registry: &mut Registry) {
    let states = Family::<Labels, Gauge>::default();
    let (instructions, packets, console, resets) = (
        Family::<Labels, Counter>::default(),
        Family::<Labels, Counter>::default(),
        Family::<Labels, Counter>::default(),
        Family::<Labels, Counter>::default(),
    );
    app.fleet.backend().watched();
    for &vm in vms {
        let Ok(record) = app.fleet.record(vm) else { continue };
        let labels = |more: Option<(&'static str, &str)>| {
            let own = std::iter::once(("vm", vm.to_string()));
            own.chain(more.map(|(name, value)| (name, value.to_owned()))).collect::<Labels>()
        };
        states.get_or_create(&labels(Some(("state", record.state.name())))).set(1);
        instructions.get_or_create(&labels(None)).inc_by(app.fleet.backend().instret(vm));
        let (rx, tx) = app.link.packets(vm);
        packets.get_or_create(&labels(Some(("direction", "rx")))).inc_by(rx);
        packets.get_or_create(&labels(Some(("direction", "tx")))).inc_by(tx);
        console.get_or_create(&labels(None)).inc_by(app.fleet.consoles.written(vm));
        resets.get_or_create(&labels(None)).inc_by(record.resets.into());
    }
    registry.register("vm_state", "1 for the VM's state", states);
    registry.register("vm_instructions", "Instructions that the VM retired", instructions);
    registry.register("vm_packets", "Packets to (rx) and from (tx) the VM", packets);
    registry.register("vm_console_bytes", "Bytes that the VM wrote", console);
    registry.register("vm_resets", "How often the VM started again", resets);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vms_are_asked_for_by_ranges() {
        assert_eq!(ranges("0-3,7", 8).unwrap(), [0, 1, 2, 3, 7]);
        for wrong in ["", "-", "3-1", "x", "1,,2", "-5", "+1"] {
            assert!(matches!(ranges(wrong, 8), Err(ApiError::BadRequest(_))), "{wrong}");
        }
        assert!(matches!(ranges("5-8", 8), Err(ApiError::Control(_))));
        assert!(ranges("0-4294967295", u32::MAX).is_err());
        assert_eq!(ranges("0-999", 5000).unwrap().len(), 1000);
        assert!(ranges("0-1000", 5000).is_err());
    }
}
