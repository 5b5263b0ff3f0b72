# Verifies webhooks of Dealix. Ruby 3.0 or newer, nothing else.
require "json"
require "openssl"

module Dealix
  TOLERANCE_S = 300

  class Forged < StandardError; end

  # The event in a request. Raises Dealix::Forged unless it is genuine and at most five minutes old.
  #
  # body: the raw bytes, before anything parses them. signature: the header Dealix-Signature, nil where it is missing.
  # secret: all of it, whsec_ included.
  def self.verify(body, signature, secret)
    raise Forged, "no secret is configured" if secret.to_s.empty?

    fields = signature.to_s.split(",").map { |part| part.strip.partition("=").values_at(0, 2) }
    t = fields.assoc("t")&.last.to_s
    unless t.match?(/\A[0-9]+\z/) && (Time.now.to_i - t.to_i).abs <= TOLERANCE_S
      raise Forged, "the signature's time is missing or more than five minutes away"
    end

    expected = OpenSSL::HMAC.hexdigest("SHA256", secret, "#{t}.#{body}")
    # While a secret is being rotated there are two v1: one that fits is enough.
    fits = fields.any? { |name, value| name == "v1" && OpenSSL.secure_compare(value, expected) }
    raise Forged, "no signature fits" unless fits

    JSON.parse(body)
  end
end
