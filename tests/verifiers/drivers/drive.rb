# Runs the example: the body on standard input, the header as argument if there is one.
require_relative "verify"

begin
  event = Dealix.verify($stdin.binmode.read, ARGV[0], ENV.fetch("DEALIX_WEBHOOK_SECRET"))
rescue Dealix::Forged => e
  abort "refused: #{e.message}"
end
puts "accepted #{event["id"]}"
