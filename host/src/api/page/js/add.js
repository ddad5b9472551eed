// The dialog that adds VMs to the fleet.

import * as api from "./api.js";
import { byId, setText } from "./dom.js";
import { count } from "./format.js";

export function setUpAdding(fleet) {
  const sheet = byId("add");
  const number = byId("add-count");
  const wrong = byId("add-wrong");

  byId("open-add").addEventListener("click", async () => {
    const { capacity, count: taken } = await api.fleet().catch(() => fleet.info ?? { capacity: 0, count: 0 });
    const room = Math.max(0, capacity - taken);
    setText(byId("add-room"), room > 0 ? `There is room for ${count(room)} more.` : "There is no room for more.");
    number.max = Math.max(1, room);
    setText(wrong, "");
    sheet.showModal();
    number.select();
  });
  byId("add-cancel").addEventListener("click", () => sheet.close());
  byId("add-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    try {
      await api.addVms(Number(number.value));
      sheet.close();
    } catch (error) {
      setText(wrong, error.message);
    }
  });
}
