-- listen
LISTEN "events";
