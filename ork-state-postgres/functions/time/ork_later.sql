-- Adds a duration to a time, up to the latest time that the API allows.
--
-- Null without a duration. `least` alone would ignore the null.
CREATE FUNCTION ork_later(p_time timestamptz, p_by interval)
RETURNS timestamptz
LANGUAGE sql STABLE
RETURN CASE WHEN p_by IS NOT NULL THEN least(p_time + p_by, timestamptz '9999-12-31 23:59:59.999999+00') END;
