"""Groups of reference cases of this system: name -> case -> outputs."""

from edg.systems.iv_mixed.verify import loops, lora, networks, schedules, videocrafter
from edg.verify.cases import Group

GROUPS: dict[str, Group] = {
    "iv_curve": Group(schedules.curves, exact=True),
    "iv_grid": Group(schedules.grids, exact=True),
    "iv_match": Group(schedules.matching, exact=True),
    "iv_loop": Group(loops.loop, exact=True),
    "iv_net": Group(networks.net),
    "iv_run": Group(networks.run),
    "iv_vc_unet": Group(networks.vc_unet),
    "iv_keys": Group(networks.keys, exact=True),
    "iv_vc_ddim": Group(videocrafter.ddim_run),
    "iv_lora": Group(lora.merge, exact=True),
    "iv_keymap": Group(networks.keymap, exact=True),
}
