"""Groups of reference cases of this system: name -> case -> outputs."""

from edg.systems.ditflow.verify import numbers
from edg.verify.cases import Group

GROUPS: dict[str, Group] = {
    "cogvideox_schedule": Group(numbers.schedule, exact=True),
    "cogvideox_step": Group(numbers.step, exact=True),
    "cogvideox_positions": Group(numbers.tables, exact=True),
    "ditflow_cfg": Group(numbers.guidance_scale, exact=True),
    "ditflow_plan": Group(numbers.plan, exact=True),
    "ditflow_amf": Group(numbers.attention_motion_flow, exact=True),
    "ditflow_feature_loss": Group(numbers.feature_loss, exact=True),
    "ditflow_score": Group(numbers.score, exact=True),
}
