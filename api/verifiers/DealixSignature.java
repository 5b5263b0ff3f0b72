import java.nio.charset.StandardCharsets;
import java.security.GeneralSecurityException;
import java.security.MessageDigest;
import java.time.Instant;
import java.util.ArrayList;
import java.util.HexFormat;
import java.util.List;
import javax.crypto.Mac;
import javax.crypto.spec.SecretKeySpec;

/** Verifies webhooks of Dealix. Java 17 or newer, nothing else. */
public final class DealixSignature {
    private static final long TOLERANCE_S = 300;

    private DealixSignature() {}

    /**
     * Throws SecurityException unless a request is genuine and at most five minutes old.
     *
     * @param body the raw bytes, before anything parses them
     * @param signature the header Dealix-Signature, null where it is missing
     * @param secret all of it, whsec_ included
     */
    public static void verify(byte[] body, String signature, String secret) {
        if (secret == null || secret.isEmpty()) {
            throw new SecurityException("no secret is configured");
        }
        String t = "";
        List<String> candidates = new ArrayList<>();
        for (String part : (signature == null ? "" : signature).split(",")) {
            String[] field = part.strip().split("=", 2);
            String value = field.length == 2 ? field[1] : "";
            if (field[0].equals("t") && t.isEmpty()) {
                t = value;
            } else if (field[0].equals("v1")) {
                candidates.add(value);
            }
        }
        // Eighteen digits are a long, and more are no time of ours.
        if (!t.matches("[0-9]{1,18}") || Math.abs(Instant.now().getEpochSecond() - Long.parseLong(t)) > TOLERANCE_S) {
            throw new SecurityException("the signature's time is missing or more than five minutes away");
        }
        byte[] expected = hmac(t + ".", body, secret);
        // While a secret is being rotated there are two v1: one that fits is enough.
        for (String candidate : candidates) {
            if (MessageDigest.isEqual(candidate.getBytes(StandardCharsets.UTF_8), expected)) {
                return;
            }
        }
        throw new SecurityException("no signature fits");
    }

    private static byte[] hmac(String start, byte[] body, String secret) {
        try {
            Mac mac = Mac.getInstance("HmacSHA256");
            mac.init(new SecretKeySpec(secret.getBytes(StandardCharsets.UTF_8), "HmacSHA256"));
            mac.update(start.getBytes(StandardCharsets.UTF_8));
            return HexFormat.of().formatHex(mac.doFinal(body)).getBytes(StandardCharsets.UTF_8);
        } catch (GeneralSecurityException e) {
            throw new IllegalStateException(e); // every Java has HmacSHA256
        }
    }
}
