//! Tickets: capability URLs for the web pages of VMs.
//!
//! A browser loads a guest's page and its parts without the API's headers, and cookies, which it
//! does send, go to all ports of the host, those of guests included. Access to a page is therefore
//! in its path: a ticket that is valid for that port of that VM and nothing else, until the fleet
//! ends.

use std::io;

use axum::Json;
use axum::extract::State;
use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use super::SharedApp;
use super::access::same;
use super::bodies::{Id, Params};
use super::error::ApiError;
use super::proxy::{HTTP, PagePath};
use crate::host::random;
use crate::units::hex;

/// Length of a ticket in bytes.
const SIZE: usize = 16;

/// Issues and verifies tickets.
pub struct Tickets(Hmac<Sha256>);

impl Tickets {
    /// Returns a new key: tickets are not valid for any other fleet.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Hmac::new(&random::<64>()?.into())))
    }

    /// Returns the ticket for a port of a VM.
    pub fn issue(&self, vm: u32, port: u16) -> String {
        let mac = self.0.clone().chain_update(vm.to_le_bytes()).chain_update(port.to_le_bytes());
        hex(&mac.finalize().into_bytes()[..SIZE])
    }

    /// Whether a ticket is valid for this port of this VM.
    pub fn admits(&self, ticket: &str, vm: u32, port: u16) -> bool {
        same(ticket, &self.issue(vm, port))
    }
}

/// Query: which page.
#[derive(Deserialize)]
pub struct Wanted {
    port: Option<u16>,
}

/// Body of a response: the page's path.
#[derive(Serialize)]
pub struct Ticket {
    path: String,
}

/// `GET /api/v1/vms/{id}/ticket`
pub async fn ticket(
    State(app): State<SharedApp>,
    Id(id): Id,
    Params(Wanted { port }): Params<Wanted>,
) -> Result<Json<Ticket>, ApiError> {
    app.fleet.record(id)?;
    let port = port.unwrap_or(HTTP);
    if port == 0 {
        return Err(ApiError::BadRequest("a port is a number from 1 to 65535".to_owned()));
    }
    let ticket = app.tickets.issue(id, port);
    let page = PagePath { ticket: Some(&ticket), id, port, rest: "" };
    Ok(Json(Ticket { path: page.path() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_is_for_one_port_of_one_vm_of_one_fleet() {
        let tickets = Tickets::new().unwrap();
        let ticket = tickets.issue(3, 80);
        assert_eq!(ticket.len(), 2 * SIZE);
        assert!(tickets.admits(&ticket, 3, 80));
        assert!(!tickets.admits(&ticket, 4, 80) && !tickets.admits(&ticket, 3, 81));
        assert!(!tickets.admits(&ticket[1..], 3, 80) && !tickets.admits("", 3, 80));
        assert!(!Tickets::new().unwrap().admits(&ticket, 3, 80));
    }
}
